package qcow2

import (
	"errors"
	"fmt"
	"strings"
)

// ErrCorrupt is wrapped when an image contradicts itself or the specification.
var ErrCorrupt = errors.New("image is corrupt")

// CorruptError says what is wrong with an image. It wraps ErrCorrupt.
type CorruptError struct {
	Path string
	What string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("disk image %q: %s: %v: look at it with qemu-img check, or use a copy of before", e.Path, e.What, ErrCorrupt)
}

// Unwrap returns ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// FeatureError is returned for an image that uses what this package cannot do.
type FeatureError struct {
	Path     string
	Features []string // as the image names them, or by their bits
}

func (e *FeatureError) Error() string {
	return fmt.Sprintf("disk image %q uses %s, which is not supported: convert it (qemu-img convert -O qcow2)", e.Path, strings.Join(e.Features, ", "))
}
