package cmdline

import (
	"bufio"
	"bytes"
	"strings"
)

// readConfig reads a -readconfig file: sections [group "id"] with lines
// key = "value" (util/qemu-config.c). They mean what the option of the
// section's name would.
func (p *parser) readConfig(path string) {
	if p.configs++; p.read == nil || p.configs > maxConfigs {
		p.c.Unparsed = append(p.c.Unparsed, "readconfig")
		return
	}
	b, err := p.read(path)
	if err != nil || len(b) > MaxBytes {
		p.c.Unparsed = append(p.c.Unparsed, "readconfig")
		return
	}
	p.ini(b)
}

func (p *parser) ini(b []byte) {
	var group string
	var kv map[string]string
	flush := func() {
		if kv != nil {
			p.section(group, kv)
		}
		kv = nil
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			flush()
			head, _, ok := strings.Cut(line[1:], "]")
			if !ok {
				continue
			}
			var id string
			group, id, _ = strings.Cut(head, " ")
			kv = map[string]string{}
			if id = strings.Trim(strings.TrimSpace(id), `"`); id != "" {
				kv["id"] = id
			}
		case kv != nil && len(kv) < maxPairs:
			k, v, ok := strings.Cut(line, "=")
			if ok {
				kv[strings.TrimSpace(k)] = strings.Trim(strings.TrimSpace(v), `"`)
			}
		}
	}
	flush()
}

func (p *parser) section(group string, kv map[string]string) {
	switch group {
	case "name":
		if n := kv["guest"]; n != "" {
			p.c.Name = cleanName(n)
		}
	case "machine":
		p.machine(kv)
	case "accel":
		p.accel(kv["accel"])
	case "memory":
		p.memory(kv)
	case "smp-opts":
		p.smp(kv)
	case "object":
		p.object(kv)
	case "numa":
		p.numa(kv)
	case "chardev":
		p.chardev(kv)
	case "device":
		if len(p.c.Devices) < maxObjects {
			p.c.Devices = append(p.c.Devices, kv)
		}
	case "mon":
		if len(p.c.mons) < maxObjects {
			p.c.mons = append(p.c.mons, kv)
		}
	}
}
