package cmdline

import (
	"strconv"
	"strings"
)

// qmp notes the socket of a -qmp option: "unix:PATH,server=on,wait=off",
// "tcp:HOST:PORT,…", or "chardev:ID".
func (p *parser) qmp(val string) {
	if len(p.c.mons) >= maxObjects {
		return
	}
	dev := keyvals(val, "addr")
	addr := dev["addr"]
	kind, rest, _ := strings.Cut(addr, ":")
	switch kind {
	case "chardev":
		p.c.mons = append(p.c.mons, map[string]string{"mode": "control", "chardev": rest})
		return
	case "unix":
		dev["backend"], dev["path"] = "socket", rest
	case "tcp":
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			return
		}
		dev["backend"], dev["host"], dev["port"] = "socket", rest[:i], rest[i+1:]
	default:
		return // stdio, pipe, pty: nobody can connect
	}
	id := "\x00qmp" + strconv.Itoa(len(p.c.mons))
	p.c.chardevs[id] = dev
	p.c.mons = append(p.c.mons, map[string]string{"mode": "control", "chardev": id})
}

// monitors joins -mon with the -chardev that it names; either may come first.
func (p *parser) monitors() {
	for _, m := range p.c.mons {
		if m["mode"] != "control" {
			continue
		}
		dev, ok := p.c.chardevs[m["chardev"]]
		if !ok {
			continue
		}
		if mon, ok := listener(dev); ok {
			p.c.Monitors = append(p.c.Monitors, mon)
		}
	}
}

// listener returns the address that a socket character device listens on. The
// same key has other prefixes in the JSON form, so the last part counts.
func listener(dev map[string]string) (Monitor, bool) {
	get := func(key string) string {
		if v, ok := dev[key]; ok {
			return v
		}
		for k, v := range dev {
			if strings.HasSuffix(k, "."+key) {
				return v
			}
		}
		return ""
	}
	m := Monitor{FD: -1, Path: get("path"), Host: get("host"), Port: get("port")}
	if s := get("fd"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return m, false
		}
		m.FD = n
	}
	if m.Path == "" && m.FD < 0 && m.Port == "" {
		return m, false
	}
	if get("abstract") == "on" && m.Path != "" {
		m.Path = "@" + m.Path
	}
	return m, true
}
