package profile

import (
	"encoding/binary"
	"fmt"
)

// Enumerators returns the names of the enum named enum, in the order in which
// they are declared, and their values. It returns an error that wraps ErrNoType
// when there is no such enum.
func (t *Types) Enumerators(enum string) (names []string, values []int64, err error) {
	for bt, err := range t.named("enum " + enum) {
		if err != nil {
			return nil, nil, err
		}
		size := btfEnumLen
		if bt.kind == btfEnum64 {
			size = btfEnum64Len
		}
		for i := range bt.vlen {
			b := bt.data[i*size:]
			lo := binary.LittleEndian.Uint32(b[4:])
			v := int64(lo)
			switch {
			case bt.kind == btfEnum64:
				v = int64(uint64(lo) | uint64(binary.LittleEndian.Uint32(b[8:]))<<32)
			case t.isSigned(bt):
				v = int64(int32(lo))
			}
			names, values = append(names, t.name(binary.LittleEndian.Uint32(b))), append(values, v)
		}
		return names, values, nil
	}
	return nil, nil, fmt.Errorf("%w: enum %s", ErrNoType, enum)
}
