package wire

import (
	"fmt"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if how := os.Getenv(echoEnv); how != "" {
		if err := echo(how); err != nil {
			fmt.Fprintln(os.Stderr, "echo:", err)
			os.Exit(1)
		}
		return
	}
	labtest.Main(m)
}
