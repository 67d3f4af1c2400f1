package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// cachedFilesHelp is the part of the help of `vantage files` that tells of
// --cached.
const cachedFilesHelp = `
With --cached it lists instead what the page cache holds, file by file: what
'vantage extract --file' can take out of RAM. JSON fields: path type fs_type
device dev rdev inode links size pages_cached bytes_cached pages_dirty
pages_swapped deleted mounted kernel_address.`

// cachedFiles is `vantage files VM --cached`.
func (a *app) cachedFiles(ctx context.Context, name string) error {
	return a.withGuest(ctx, name, func(g *linux.Guest) error {
		list, err := g.CachedFiles(ctx)
		if err != nil {
			return fmt.Errorf("files of %s: %w", name, err)
		}
		if err := a.printCachedFiles(list.Files); err != nil {
			return err
		}
		return a.incomplete(list.Coverage)
	})
}

func (a *app) printCachedFiles(fs []linux.CachedFile) error {
	if a.json {
		for i := range fs {
			if err := a.printJSON(&fs[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "CACHED", Right: true}, term.Column{Title: "SIZE", Right: true}, term.Column{Title: "DIRTY", Right: true},
		term.Column{Title: "TYPE"}, term.Column{Title: "FS"}, term.Column{Title: "DEVICE"}, term.Column{Title: "INODE", Right: true},
		term.Column{Title: "PATH", Flex: true},
	)
	for i := range fs {
		f := &fs[i]
		path := f.Path
		if path != "" && !f.Mounted && !f.Deleted {
			path = "(not mounted) " + path
		}
		t.Row(bytesText(f.Bytes), bytesText(f.Size), bytesText(f.PagesDirty*4096), string(f.Type), f.FSType, f.Device,
			strconv.FormatUint(f.Inode, 10), path)
	}
	return t.Print(a.stdout)
}
