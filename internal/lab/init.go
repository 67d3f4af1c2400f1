package lab

import (
	"context"
	_ "embed"
	"fmt"
	"strings"
)

// guestInit is /init of a guest: mounts, then modules, then Config.Init, then
// the loop that Guest.Run speaks to.
//
//go:embed guest/init.sh
var guestInit string

// buildInitramfs collects what a guest boots from.
func buildInitramfs(ctx context.Context, c Config) (*Initramfs, error) {
	fs := &Initramfs{}
	if err := fs.Busybox(); err != nil {
		return nil, err
	}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "mnt", "etc", "root", "run", "lib/modules"} {
		fs.Mkdir(d)
	}
	// The kernel opens /dev/console for /init before devtmpfs is mounted.
	fs.Device("dev/console", 5, 1)
	fs.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\npostgres:x:105:105::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"))
	fs.File("etc/group", 0o644, []byte("root:x:0:\nwww-data:x:33:\npostgres:x:105:\nnogroup:x:65534:\n"))
	if c.RawInit != "" {
		fs.File("init", 0o755, []byte(c.RawInit))
	} else {
		fs.File("init", 0o755, []byte(guestInit))
	}
	fs.File("lab/init.sh", 0o755, []byte(c.Init))
	fs.File("lab/name", 0o644, []byte(c.Name+"\n"))
	fs.File("lab/ready", 0o644, []byte(c.Ready+"\n"))
	var order strings.Builder
	if len(c.Modules) > 0 {
		mods, err := c.Kernel.Modules(ctx, c.Modules...)
		if err != nil {
			return nil, err
		}
		for _, m := range mods {
			fs.HostFile("lib/modules/"+m.Name+".ko", 0o644, m.Path)
			fmt.Fprintf(&order, "%s\n", m.Name)
		}
	}
	fs.File("lab/modules", 0o644, []byte(order.String()))
	if c.Program {
		if err := addTruthProgram(ctx, fs); err != nil {
			return nil, err
		}
	}
	for _, f := range c.Files {
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		switch {
		case f.Data != nil:
			fs.add(f.Path, entry{mode: modeFile | mode, data: f.Data})
		case f.Host != "":
			fs.add(f.Path, entry{mode: modeFile | mode, host: f.Host})
		case f.Link != "":
			fs.Symlink(f.Path, f.Link)
		default:
			fs.add(f.Path, entry{mode: modeFile | mode})
		}
	}
	return fs, nil
}
