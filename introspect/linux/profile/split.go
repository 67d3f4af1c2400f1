package profile

import "slices"

// WithModule returns t and the types of a module, as the module sees them: blob
// is its own BTF, whose numbers of types and offsets of strings go on where those
// of the kernel end (Documentation/bpf/btf.rst, "split BTF"). It must not change
// any more.
//
// What has the same name in both is found in the kernel first. The error wraps
// ErrDamaged when blob does not hold together, ErrNoBTF when t is nil.
func (t *Types) WithModule(blob []byte) (*Types, error) {
	if t == nil {
		return nil, ErrNoBTF
	}
	h, err := parseBTFHeader(blob, uint64(len(blob)))
	if err != nil {
		return nil, err
	}
	strs := blob[h.strs:h.strsEnd]
	if strs[len(strs)-1] != 0 {
		return nil, btfDamaged(h.strs, "strings do not end with a NUL")
	}
	all := &Types{
		types: slices.Concat(t.types, blob[h.types:h.typesEnd]),
		strs:  slices.Concat(t.strs, strs),
		base:  t.base,
	}
	if err := all.buildIndex(); err != nil {
		return nil, err
	}
	return all, nil
}
