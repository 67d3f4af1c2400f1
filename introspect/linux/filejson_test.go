package linux

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// What is written by hand is what encoding/json writes.
func TestFileJSON(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.UTC)
	for _, f := range []File{
		{},
		{PID: 4194304, Comm: "sh", Role: RoleOpen, FD: 1000, Path: "/tmp/a b", Type: TypeRegular, Flags: 0o2100002, Pos: -1, Inode: 1<<64 - 1,
			Dev: 8<<20 | 1, RDev: 4095<<20 | 1048575, Deleted: true, Links: 3, UID: NoID, GID: 4294967294, Mode: 0o100644, Size: 1 << 62,
			ModTime: now, ChangeTime: now.Add(1), AccessTime: time.Unix(-1, 0).UTC(), MountNamespace: 4026531841, KernelAddress: 0xffff_8881_2345_6780},
		{Comm: "<&>\"\\", Role: RoleProgram, FD: -1, Path: "/\x1b[31m\u2028é\x7f\n\xff\xfe", Type: "a\x00b"},
	} {
		type plain File
		q := plain(f)
		q.Comm, q.Path, q.Type = jsonText(f.Comm), jsonText(f.Path), FileType(jsonText(string(f.Type)))
		want, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.MarshalJSON()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s, %v; want\n%s", got, err, want)
		}
	}
}
