package image

import "fmt"

// FormatError says what is wrong with a memory file, and where in it.
type FormatError struct {
	Path   string
	Offset int64  // in the file, in bytes
	What   string // "LiME header: end 0x10 is before start 0x20"
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("memory file %q: offset %#x: %s", e.Path, e.Offset, e.What)
}
