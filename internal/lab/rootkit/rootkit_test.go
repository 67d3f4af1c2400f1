package rootkit_test

import (
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
	"github.com/vantage-vmi/vantage/internal/lab/rootkit"
)

// The module is built for each kernel and does what it is told there.
func TestBuild(t *testing.T) {
	suite := lab.Bookworm
	k := labtest.Kernel(t, suite)
	g := labtest.Boot(t, lab.Config{
		Name: "rootkit", Kernel: k, Memory: 256 * lab.MiB,
		Files: []lab.File{labtest.Rootkit(t, suite, "/lib/kit.ko", "lurking")},
	})
	out, err := g.Run(t.Context(), `
		sleep 1000 &
		insmod /lib/kit.ko processes=$!:tasks+index self=list || exit 1
		until dmesg | grep -q 'rootkit: done'; do usleep 10000; done
		kill -0 $! 2>/dev/null && echo alive; ls /proc | grep -x $!; ls -d /sys/module/lurking; cat /proc/modules`)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(strings.ReplaceAll(out, "\r", "")) != "/sys/module/lurking" {
		t.Errorf("the guest still sees %q", out)
	}
	if _, err := rootkit.Rename([]byte("rootkit\x00"), "lurking"); err == nil {
		t.Error("what is no module was renamed")
	}
	if _, err := rootkit.Rename(nil, "short"); err == nil {
		t.Error("a name of another length was taken")
	}
}
