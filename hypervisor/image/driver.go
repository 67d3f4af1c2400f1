package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// driverName is the scheme of this driver's URIs.
const driverName = "image"

// DefaultCacheBytes is how much decompressed memory an AVML file keeps.
const DefaultCacheBytes = 64 << 20

// Options configure a Driver. The zero value is ready for use.
type Options struct {
	Logger *slog.Logger // nil: no log
	// CacheBytes bounds the decompressed memory kept per open AVML file. 0 is
	// DefaultCacheBytes.
	CacheBytes int
}

// Driver opens memory files.
type Driver struct {
	log        *slog.Logger
	cacheBytes int
	noMap      bool // for tests: as if files could not be mapped
}

// New returns a driver for memory files.
func New(o Options) *Driver {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	return &Driver{log: o.Logger, cacheBytes: o.CacheBytes}
}

// Name returns "image".
func (d *Driver) Name() string { return driverName }

// List returns nothing: memory files are not looked for.
func (d *Driver) List(context.Context) ([]hypervisor.Info, error) { return nil, nil }

// params are the options of a target, in the form of a URI's query.
type params struct {
	format  string // raw, elf, lime, avml; empty: by the file's first bytes
	hole    string // pc, q35: how a raw file's bytes lie around 4 GiB
	partial bool   // take a truncated file for what is there
}

// Open opens the memory file that target names: a path, then options as in a
// URI's query, "/x.raw?hole=q35":
//
//	format=raw|elf|lime|avml  the file's format, in place of detection
//	hole=pc|q35               raw only: the file is the RAM of a QEMU machine of this
//	                          type without the hole below 4 GiB (a shared RAM file
//	                          of a VM with 3.5 GiB, on q35 2.75 GiB, or more)
//	partial=1                 open a truncated file too: what is missing is RAM
//	                          that fails to read with hypervisor.ErrUnreadable
//
// A file that is not there gives an error that wraps hypervisor.ErrNotFound, a
// damaged one a *FormatError.
func (d *Driver) Open(ctx context.Context, target string) (hypervisor.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, p, err := parseTarget(target)
	if err != nil {
		return nil, fmt.Errorf("open memory file: %w", err)
	}
	vm, err := d.open(path, p)
	if err != nil {
		return nil, fmt.Errorf("open memory file: %w", err)
	}
	return vm, nil
}

func (d *Driver) open(path string, p params) (_ hypervisor.VM, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Opening a named pipe would block.
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", hypervisor.ErrNotFound, err)
	} else if err != nil {
		return nil, err
	}
	isBlock := st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	if !st.Mode().IsRegular() && !isBlock {
		return nil, fmt.Errorf("%q is neither a file nor a block device: %w", path, hypervisor.ErrNotSupported)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	src := &source{path: path, r: f, size: size, partial: p.partial}
	im, err := src.parse(p)
	if err != nil {
		return nil, err
	}
	for _, w := range im.warnings {
		d.log.Warn("memory file is odd", "path", path, "what", w)
	}
	return d.newVM(f, src, im, p)
}

// parseTarget splits the options off target. A path that exists as it stands has
// none, whatever its characters.
func parseTarget(target string) (string, params, error) {
	path, query, found := target, "", false
	if _, err := os.Lstat(target); err != nil {
		if i := strings.LastIndexByte(target, '?'); i >= 0 {
			path, query, found = target[:i], target[i+1:], true
		}
	}
	if path == "" {
		return "", params{}, errors.New("no path")
	}
	var p params
	if !found {
		return path, p, nil
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", p, fmt.Errorf("options of %q: %w", path, err)
	}
	for k, vs := range values {
		v := vs[len(vs)-1]
		var ok bool
		switch k {
		case "format":
			p.format = v
			ok = v == formatRaw || v == formatELF || v == formatLiME || v == formatAVML
		case "hole":
			p.hole = v
			ok = v == "pc" || v == "q35"
		case "partial":
			p.partial = v == "1"
			ok = v == "0" || v == "1"
		default:
			return "", p, fmt.Errorf("unknown option %q (known: format, hole, partial)", k)
		}
		if !ok {
			return "", p, fmt.Errorf("option %s: unknown value %q", k, v)
		}
	}
	return path, p, nil
}

// uri returns the URI that opens the file again.
func (p params) uri(path string) string {
	q := url.Values{}
	if p.format != "" {
		q.Set("format", p.format)
	}
	if p.hole != "" {
		q.Set("hole", p.hole)
	}
	if p.partial {
		q.Set("partial", "1")
	}
	if len(q) == 0 {
		return driverName + ":" + path
	}
	return driverName + ":" + path + "?" + q.Encode()
}
