package linux

import (
	"encoding/json"
	"strconv"
	"time"
)

// MarshalJSON writes f with its strings made valid: see the package comment. A
// guest has thousands of open files, so it does without reflection.
func (f File) MarshalJSON() ([]byte, error) {
	const room = 512 // for all but a long path
	j := fileJSON{b: make([]byte, 0, room+len(f.Path))}
	j.int("pid", int64(f.PID))
	j.text("comm", f.Comm)
	j.text("role", string(f.Role))
	j.int("fd", int64(f.FD))
	j.text("path", f.Path)
	j.text("type", string(f.Type))
	j.octal("flags", f.Flags)
	j.int("pos", f.Pos)
	j.uint("inode", f.Inode)
	j.device("dev", f.Dev)
	j.device("rdev", f.RDev)
	j.key("deleted")
	j.b = strconv.AppendBool(j.b, f.Deleted)
	j.int("links", int64(f.Links))
	j.int("uid", int64(f.UID))
	j.int("gid", int64(f.GID))
	j.octal("mode", f.Mode)
	j.int("size", f.Size)
	j.time("mtime", f.ModTime)
	j.time("ctime", f.ChangeTime)
	j.time("atime", f.AccessTime)
	j.uint("mnt_ns", uint64(f.MountNamespace))
	j.key("kernel_address")
	j.b = append(j.b, `"0x`...)
	j.b = append(strconv.AppendUint(j.b, uint64(f.KernelAddress), 16), '"')
	return append(j.b, '}'), j.err
}

// fileJSON is an object of JSON that is being written.
type fileJSON struct {
	b   []byte
	err error
}

func (j *fileJSON) key(name string) {
	sep := byte(',')
	if len(j.b) == 0 {
		sep = '{'
	}
	j.b = append(append(append(j.b, sep, '"'), name...), '"', ':')
}

func (j *fileJSON) int(name string, v int64) {
	j.key(name)
	j.b = strconv.AppendInt(j.b, v, 10)
}

func (j *fileJSON) uint(name string, v uint64) {
	j.key(name)
	j.b = strconv.AppendUint(j.b, v, 10)
}

func (j *fileJSON) octal(name string, v Octal) {
	j.key(name)
	j.b = append(strconv.AppendUint(append(j.b, '"', '0'), uint64(v), 8), '"')
}

func (j *fileJSON) device(name string, d DeviceNumber) {
	j.key(name)
	j.b = append(strconv.AppendUint(append(j.b, '"'), uint64(d.Major()), 10), ':')
	j.b = append(strconv.AppendUint(j.b, uint64(d.Minor()), 10), '"')
}

// time leaves a time that is not known out.
func (j *fileJSON) time(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	j.key(name)
	b, err := t.MarshalJSON()
	if err != nil {
		j.err = err
	}
	j.b = append(j.b, b...)
}

func (j *fileJSON) text(name, s string) {
	j.key(name)
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			b, err := json.Marshal(jsonText(s))
			if err != nil {
				j.err = err
			}
			j.b = append(j.b, b...)
			return
		}
	}
	j.b = append(append(append(j.b, '"'), s...), '"')
}
