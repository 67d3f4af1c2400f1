package cmdline

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

func parse(args ...string) *Config { return Parse(args, nil) }

func TestLibvirt(t *testing.T) {
	b, err := os.ReadFile("testdata/libvirt.txt")
	if err != nil {
		t.Fatal(err)
	}
	c := parse(strings.Split(strings.TrimSpace(string(b)), "\n")[1:]...)
	if c.Name != "web-1" || c.UUID != "8c6b3f1a-9a3e-4d4f-8d6b-3f0d3f9f1c11" || c.MachineType() != "pc-q35-7.2" || !c.KVM || c.CPUs != 2 {
		t.Errorf("%+v", c)
	}
	if c.MemoryBytes() != 4<<30 {
		t.Errorf("memory %#x", c.MemoryBytes())
	}
	o, ok := c.Object(c.Machine["memory-backend"])
	if !ok || !o.IsBackend() || o.Type != "memory-backend-memfd" || o.Size() != 4<<30 || !o.Shared() {
		t.Errorf("memory backend %+v", o)
	}
	if want := []Monitor{{FD: 31}}; !reflect.DeepEqual(c.Monitors, want) {
		t.Errorf("monitors %+v", c.Monitors)
	}
	if len(c.Unparsed) > 0 || c.Encrypted() != "" || c.HotplugMemory() {
		t.Errorf("%+v", c)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-name", "plain"}, "plain"},
		{[]string{"-name", "guest=a,debug-threads=on"}, "a"},
		{[]string{"-name", "b,debug-threads=on"}, "b"},
		{[]string{"-name", "debug-threads=on"}, ""},
		{[]string{"-name", "comma,,in,process=x"}, "comma,in"},
		{[]string{"--name", "two-dashes"}, "two-dashes"},
		{[]string{"-append", "-name", "-name", "x"}, "x"}, // a value that looks like an option
		{[]string{"-name", "bad\xff\x1b[31m"}, "bad\uFFFD\x1b[31m"},
		{[]string{"-name", strings.Repeat("é", 300)}, strings.Repeat("é", 127)},
		{[]string{"-name"}, ""},
		{nil, ""},
	} {
		if got := parse(tt.args...).Name; got != tt.want {
			t.Errorf("%q: name %q, want %q", tt.args, got, tt.want)
		}
	}
}

func TestMemory(t *testing.T) {
	for _, tt := range []struct {
		args string
		size uint64
		max  uint64
	}{
		{"", DefaultMemory, 0},
		{"-m 512", 512 << 20, 0},
		{"-m 2G", 2 << 30, 0},
		{"-m 0.5G", 512 << 20, 0},
		{"-m 1.5g", 1536 << 20, 0},
		{"-m 4194304k", 4 << 30, 0},
		{"-m 0x200", 512 << 20, 0},
		{"-m 100000k", 100000 << 10 / 8192 * 8192, 0},
		{"-m size=1G,slots=2,maxmem=8G", 1 << 30, 8 << 30},
		{"-m 1G,slots=2,maxmem=8G", 1 << 30, 8 << 30},
		{"-m nonsense", DefaultMemory, 0},
		{"-machine q35,memory.size=3G,memory.max-size=5G", 3 << 30, 5 << 30},
		{"-object memory-backend-ram,id=x,size=1G -machine memory-backend=x", 1 << 30, 0},
		{"-object memory-backend-ram,id=x,size=1G -object memory-backend-ram,id=y,size=2G -numa node,memdev=x -numa node,memdev=y", 3 << 30, 0},
		{`-m 1G -set machine.x.y=z`, 1 << 30, 0},
	} {
		c := parse(strings.Fields(tt.args)...)
		if c.MemoryBytes() != tt.size || c.MaxMem != tt.max {
			t.Errorf("%q: %#x, maxmem %#x; want %#x, %#x", tt.args, c.MemoryBytes(), c.MaxMem, tt.size, tt.max)
		}
	}
}

func TestCPUs(t *testing.T) {
	for arg, want := range map[string]int{
		"": 1, "4": 4, "cpus=3": 3, "2,maxcpus=8": 2, "sockets=2,cores=2,threads=2": 8, "maxcpus=6": 6, "x": 1, "0": 1,
		"2,sockets=2,cores=1": 2, "99999999999": 1,
	} {
		args := []string{"-smp", arg}
		if arg == "" {
			args = nil
		}
		if got := parse(args...).CPUs; got != want {
			t.Errorf("-smp %q: %d CPUs, want %d", arg, got, want)
		}
	}
}

func TestMonitors(t *testing.T) {
	for _, tt := range []struct {
		args string
		want []Monitor
	}{
		{"-qmp unix:/run/q.sock,server=on,wait=off", []Monitor{{Path: "/run/q.sock", FD: -1}}},
		{"-qmp-pretty unix:rel.sock,server,nowait", []Monitor{{Path: "rel.sock", FD: -1}}},
		{"-qmp tcp:127.0.0.1:4444,server=on", []Monitor{{Host: "127.0.0.1", Port: "4444", FD: -1}}},
		{"-qmp tcp::4444,server=on", []Monitor{{Port: "4444", FD: -1}}},
		{"-qmp stdio", nil},
		{"-monitor unix:/run/hmp.sock,server=on", nil},
		{"-mon chardev=c,mode=control -chardev socket,id=c,path=/x,server=on", []Monitor{{Path: "/x", FD: -1}}},
		{"-chardev socket,id=c,path=/x,server=on -mon c,mode=control,pretty=on", []Monitor{{Path: "/x", FD: -1}}},
		{"-chardev socket,id=c,path=/x -mon c", nil},
		{"-chardev socket,id=c,path=x,abstract=on -mon c,mode=control", []Monitor{{Path: "@x", FD: -1}}},
		{"-chardev socket,id=c,path=/x -qmp chardev:c", []Monitor{{Path: "/x", FD: -1}}},
		{`-chardev {"id":"c","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/j"}},"server":true}}} -mon {"chardev":"c","mode":"control"}`, []Monitor{{Path: "/j", FD: -1}}},
		{"-chardev socket,id=c,fd=zz -mon c,mode=control", nil},
		{"-mon chardev=nowhere,mode=control", nil},
	} {
		if got := parse(strings.Fields(tt.args)...).Monitors; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, want %+v", tt.args, got, tt.want)
		}
	}
}

func TestReadConfig(t *testing.T) {
	const ini = `# a comment
[name]
  guest = "from-file"
[machine]
  type = "q35"
  accel = "kvm"
[memory]
  size = "2048"
[smp-opts]
  cpus = "3"
[object "ram"]
  qom-type = "memory-backend-file"
  size = "2G"
  mem-path = "/dev/shm/x"
[chardev "c"]
  backend = "socket"
  path = "/run/qmp"
[mon "m"]
  mode = "control"
  chardev = "c"
[unknown]
  key = "value"
`
	read := func(path string) ([]byte, error) {
		if path != "vm.cfg" {
			return nil, errors.New("no such file")
		}
		return []byte(ini), nil
	}
	c := Parse([]string{"-readconfig", "vm.cfg", "-set", "object.ram.share=on"}, read)
	o, _ := c.Object("ram")
	if c.Name != "from-file" || c.MachineType() != "q35" || !c.KVM || c.Memory != 2<<30 || c.CPUs != 3 || !o.Shared() || o.Size() != 2<<30 {
		t.Errorf("%+v", c)
	}
	if len(c.Monitors) != 1 || c.Monitors[0].Path != "/run/qmp" {
		t.Errorf("monitors %+v", c.Monitors)
	}
	if c := Parse([]string{"-readconfig", "other"}, read); len(c.Unparsed) != 1 {
		t.Errorf("a file that cannot be read is not told of: %+v", c)
	}
}

func TestMachine(t *testing.T) {
	c := parse("-M", "pc,accel=tcg:kvm", "-machine", "max-ram-below-4g=2G", "-enable-kvm", "-accel", "kvm")
	if c.MachineType() != "pc" || c.Machine["max-ram-below-4g"] != "2G" {
		t.Errorf("%+v", c.Machine)
	}
	if parse("-accel", "tcg", "-accel", "kvm").KVM || !parse("-accel", "kvm:tcg").KVM {
		t.Error("the first accelerator counts")
	}
	if parse("-machine", "q35,confidential-guest-support=sev0").Encrypted() != "sev0" {
		t.Error("an encrypted guest is not seen")
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{"1": 1, "1k": 1024, "1.5K": 1536, "0x10": 16, "0x1M": 1 << 20, "2T": 2 << 40, "1b": 1} {
		if got, err := ParseSize(s, 1); got != want || err != nil {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "k", "1kk", "-1", "1e3", "inf", "NaN", "99999999999999999999", "17E", "1.5.5", "0x", "1 G"} {
		if got, err := ParseSize(s, 1); err == nil {
			t.Errorf("ParseSize(%q) = %d is taken", s, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile("testdata/libvirt.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(strings.ReplaceAll(string(b), "\n", "\x00"))
	f.Add("-m\x00size=1G,slots=2,maxmem=8G\x00-numa\x00node,memdev=a\x00-object\x00memory-backend-ram,id=a,size=1G")
	f.Add("-readconfig\x00[memory]\nsize=\"1G\"\n[object \"a\"]\nqom-type=b\x00-set\x00object.a.size=5")
	f.Add(`-chardev` + "\x00" + `{"id":"c","backend":{"data":{"path":"/j"}}}` + "\x00-mon\x00c,mode=control")
	f.Fuzz(func(t *testing.T, s string) {
		// The name of a file is taken for its content.
		c := Parse(strings.Split(s, "\x00"), func(path string) ([]byte, error) { return []byte(path), nil })
		if len(c.Name) > maxName || c.CPUs < 1 || len(c.Objects) > maxObjects {
			t.Fatalf("%+v", c)
		}
		_ = c.MemoryBytes()
	})
}
