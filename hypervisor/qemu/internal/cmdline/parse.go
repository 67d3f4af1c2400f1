package cmdline

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Options without an argument; all others take the next word.
const flagOptions = `h help version S s snapshot usb nographic portrait full-screen
	win2k-hack rtc-td-hack no-fd-bootchk no-acpi no-hpet no-quit no-frame alt-grab ctrl-grab sdl
	curses singlestep one-insn-per-tb preconfig enable-kvm enable-hax xen-attach xen-domid-restrict
	no-reboot no-shutdown daemonize only-migratable nodefaults nodefconfig no-user-config
	enable-sync-profile mem-prealloc audio-help semihosting old-param show-cursor tdf no-kvm
	no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection async-teardown`

// ReadConfigFunc returns the content of a -readconfig file, at most MaxBytes.
type ReadConfigFunc func(path string) ([]byte, error)

// Parse reads the arguments behind the program's name. readConfig may be nil:
// then -readconfig is noted in Unparsed.
func Parse(args []string, readConfig ReadConfigFunc) *Config {
	c := &Config{CPUs: 1, Machine: map[string]string{}, chardevs: map[string]map[string]string{}}
	p := parser{c: c, read: readConfig}
	flags := map[string]bool{}
	for f := range strings.FieldsSeq(flagOptions) {
		flags[f] = true
	}
	if len(args) > maxArgs {
		args = args[:maxArgs]
		c.Unparsed = append(c.Unparsed, "(too many arguments)")
	}
	for i := 0; i < len(args); i++ {
		opt, ok := strings.CutPrefix(args[i], "-")
		if !ok || opt == "" {
			continue // a disk image
		}
		opt = strings.TrimPrefix(opt, "-")
		if flags[opt] {
			p.option(opt, "")
			continue
		}
		if i+1 >= len(args) {
			break
		}
		i++
		p.option(opt, args[i])
	}
	p.monitors()
	return c
}

type parser struct {
	c       *Config
	read    ReadConfigFunc
	configs int

	accelSeen bool
}

func (p *parser) option(opt, val string) {
	c := p.c
	switch opt {
	case "name":
		kv := keyvals(val, "guest")
		if n := kv["guest"]; n != "" {
			c.Name = cleanName(n)
		}
	case "uuid":
		c.UUID = cleanName(val)
	case "machine", "M":
		p.machine(structured(val, "type"))
	case "accel":
		p.accel(keyvals(val, "accel")["accel"])
	case "enable-kvm":
		c.KVM = true
	case "cpu":
		c.CPU = val
	case "m":
		p.memory(keyvals(val, "size"))
	case "smp":
		p.smp(keyvals(val, "cpus"))
	case "mem-path":
		c.MemPath = val
	case "incoming":
		c.Incoming = true
	case "object":
		p.object(structured(val, "qom-type"))
	case "numa":
		p.numa(structured(val, "type"))
	case "device":
		if len(c.Devices) < maxObjects {
			c.Devices = append(c.Devices, structured(val, "driver"))
		}
	case "chardev":
		p.chardev(structured(val, "backend"))
	case "mon":
		if len(p.c.mons) < maxObjects {
			c.mons = append(c.mons, structured(val, "chardev"))
		}
	case "qmp", "qmp-pretty":
		p.qmp(val)
	case "readconfig":
		p.readConfig(val)
	case "set":
		p.set(val)
	}
}

// cleanName makes text of the command line fit to be carried around: valid
// UTF-8 of bounded length. Control characters stay; they are escaped where the
// name is printed.
func cleanName(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxName {
		return s
	}
	s = s[:maxName]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

func (p *parser) machine(kv map[string]string) {
	for k, v := range kv {
		p.c.Machine[k] = v
	}
	if a, ok := kv["accel"]; ok {
		p.accel(a)
	}
	// Since QEMU 7.1 what -m and -smp say are properties of the machine too.
	sub := func(prefix string) map[string]string {
		out := map[string]string{}
		for k, v := range kv {
			if s, ok := strings.CutPrefix(k, prefix); ok {
				out[s] = v
			}
		}
		return out
	}
	if m := sub("memory."); len(m) > 0 {
		if v, ok := m["max-size"]; ok {
			m["maxmem"] = v
		}
		p.memory(m)
	}
	if s := sub("smp."); len(s) > 0 {
		p.smp(s)
	}
}

// accel notes the first accelerator of a list "kvm:tcg"; of several -accel the
// first is tried first.
func (p *parser) accel(list string) {
	if list == "" || p.accelSeen {
		return
	}
	p.accelSeen = true
	first, _, _ := strings.Cut(list, ":")
	p.c.KVM = first == "kvm"
}

func (p *parser) memory(kv map[string]string) {
	if v, ok := kv["size"]; ok {
		n, err := ParseSize(v, 1<<20)
		if err != nil {
			p.c.Unparsed = append(p.c.Unparsed, "m")
		} else {
			p.c.Memory = (n + 8191) &^ 8191 // as QEMU rounds it
		}
	}
	if v, ok := kv["maxmem"]; ok {
		if n, err := ParseSize(v, 1<<20); err == nil {
			p.c.MaxMem = n
		}
	}
	if v, ok := kv["slots"]; ok {
		if n, err := strconv.ParseUint(v, 10, 16); err == nil {
			p.c.Slots = n
		}
	}
}

func (p *parser) smp(kv map[string]string) {
	num := func(key string) int {
		n, err := strconv.Atoi(kv[key])
		if err != nil || n < 1 || n > 1<<16 {
			return 0
		}
		return n
	}
	if n := num("cpus"); n > 0 {
		p.c.CPUs = n
		return
	}
	// Without cpus= it is maxcpus=, else the product of the topology.
	if n := num("maxcpus"); n > 0 {
		p.c.CPUs = n
		return
	}
	n := 1
	for _, k := range []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"} {
		if v := num(k); v > 0 {
			n = min(n*v, 1<<16)
		}
	}
	p.c.CPUs = n
}

func (p *parser) object(kv map[string]string) {
	if len(p.c.Objects) >= maxObjects {
		return
	}
	// Before QEMU 6.0 JSON had the properties in an object "props".
	for k, v := range kv {
		if s, ok := strings.CutPrefix(k, "props."); ok {
			kv[s] = v
		}
	}
	p.c.Objects = append(p.c.Objects, Object{Type: kv["qom-type"], ID: kv["id"], Props: kv})
}

func (p *parser) numa(kv map[string]string) {
	if kv["type"] != "node" || len(p.c.Nodes) >= maxObjects {
		return
	}
	n := Node{ID: len(p.c.Nodes), MemDev: kv["memdev"]}
	if v, ok := kv["nodeid"]; ok {
		id, err := strconv.Atoi(v)
		if err != nil {
			p.c.Unparsed = append(p.c.Unparsed, "numa")
			return
		}
		n.ID = id
	}
	p.c.Nodes = append(p.c.Nodes, n)
}

func (p *parser) chardev(kv map[string]string) {
	if id := kv["id"]; id != "" && len(p.c.chardevs) < maxObjects {
		p.c.chardevs[id] = kv
	}
}

// set applies -set group.id.key=value to an object or a character device that
// came before it, as QEMU does.
func (p *parser) set(val string) {
	target, v, ok := strings.Cut(val, "=")
	f := strings.SplitN(target, ".", 3)
	if !ok || len(f) != 3 {
		return
	}
	switch f[0] {
	case "object":
		if o, ok := p.c.Object(f[1]); ok {
			o.Props[f[2]] = v
		}
	case "chardev":
		if c, ok := p.c.chardevs[f[1]]; ok {
			c[f[2]] = v
		}
	case "mon":
		for _, m := range p.c.mons {
			if m["id"] == f[1] {
				m[f[2]] = v
			}
		}
	}
}
