package paging

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bits of an entry (Intel SDM 3A, table 4-20 and its like).
const (
	bitPresent  = 1 << 0
	bitWrite    = 1 << 1
	bitUser     = 1 << 2
	bitPWT      = 1 << 3
	bitPCD      = 1 << 4
	bitAccessed = 1 << 5
	bitDirty    = 1 << 6
	bitLarge    = 1 << 7 // PS: in a table above the last one, this entry is a page
	bitGlobal   = 1 << 8
	bitNX       = 1 << 63

	bitPAT      = 1 << 7 // in the last level's table
	bitPATLarge = 1 << 12

	maxPhysBits = 52
	addrMask    = 1<<maxPhysBits - 1
	// keyBits are those that may say by which key a page is encrypted.
	keyBits = addrMask &^ (1<<32 - 1)
)

// level is the format of the entries of one level's tables.
type level struct {
	number   int    // 1 page table, 2 page directory, … 5 PML5
	shift    uint   // log2 of what one entry covers
	entries  uint64 // per table
	mayLarge bool   // PS makes an entry a page
	noPerms  bool   // entries have no permission bits (PAE's PDPTE)
	// What must be zero in a present entry, as a table and as a page.
	tableReserved, pageReserved uint64
	dirty                       uint64 // bits of an entry that say that its page was written to
}

// layout is a paging mode made ready for walking.
type layout struct {
	levels    []level // from the top
	entrySize uint64
	vaBits    uint // width of a virtual address
	signed    bool // addresses are sign-extended to 64 bits
	pse36     bool // pages of level 2 have their high address bits in 20:13
	nx        bool
	tableMask uint64     // address bits of an entry that points to a table
	keyMask   uint64     // see Root.EncryptionMask
	absent    AbsentPage // may be nil
}

func newLayout(r Root) (*layout, error) {
	width := uint(r.PhysBits)
	if width == 0 || width > maxPhysBits {
		width = maxPhysBits
	}
	// Bits from MAXPHYADDR to 51.
	key := r.EncryptionMask & keyBits
	high := uint64(addrMask) &^ (1<<width - 1) &^ key
	if !r.NX {
		high |= bitNX
	}
	l := &layout{entrySize: 8, nx: r.NX, tableMask: addrMask &^ 0xfff &^ key, keyMask: key}
	pt := level{number: 1, shift: 12, entries: 512, pageReserved: high}
	pd := level{number: 2, shift: 21, entries: 512, mayLarge: true, tableReserved: high, pageReserved: high | 0x1f_e000}
	switch r.Mode {
	case Mode32:
		l.entrySize, l.vaBits, l.pse36, l.nx = 4, 32, true, false
		l.tableMask = 0xffff_f000
		pd = level{number: 2, shift: 22, entries: 1024, mayLarge: r.PSE, pageReserved: 1 << 21}
		if width < 40 {
			// Of PSE-36's address bits 39:32, in 20:13, those from MAXPHYADDR.
			pd.pageReserved |= 0x1f_e000 &^ (1<<(max(width, 32)-32+13) - 1)
		}
		pt = level{number: 1, shift: 12, entries: 1024}
		l.levels = []level{pd, pt}
	case ModePAE:
		l.vaBits = 32
		const ignored = 0x7ff << 52 // 62:52 are reserved here, ignored elsewhere
		pt.pageReserved |= ignored
		pd.tableReserved |= ignored
		pd.pageReserved |= ignored
		// Of the reserved bits 2:1 and 8:5 bit 5 is let pass: QEMU's TCG keeps an
		// accessed bit there, as if this were an entry like the others.
		top := level{number: 3, shift: 30, entries: 4, noPerms: true, tableReserved: high | ignored | bitNX | 0x1c6}
		l.levels = []level{top, pd, pt}
	case Mode4Level, Mode5Level:
		l.vaBits, l.signed = 48, true
		pdpt := level{number: 3, shift: 30, entries: 512, mayLarge: true, tableReserved: high, pageReserved: high | 0x3fff_e000}
		pml4 := level{number: 4, shift: 39, entries: 512, tableReserved: high | bitLarge}
		l.levels = []level{pml4, pdpt, pd, pt}
		if r.Mode == Mode5Level {
			l.vaBits = 57
			pml5 := pml4
			pml5.number, pml5.shift = 5, 48
			l.levels = append([]level{pml5}, l.levels...)
		}
	default:
		return nil, ErrBadRoot
	}
	for i := range l.levels {
		l.levels[i].dirty = bitDirty
	}
	return l, nil
}

// canonical reports whether va is an address of this mode.
func (l *layout) canonical(va hypervisor.VirtAddr) bool {
	if !l.signed {
		return uint64(va)>>l.vaBits == 0
	}
	top := int64(va) >> (l.vaBits - 1)
	return top == 0 || top == -1
}

// load returns entry i of a table.
func (l *layout) load(table []byte, i uint64) uint64 {
	if l.entrySize == 4 {
		return uint64(binary.LittleEndian.Uint32(table[i*4:]))
	}
	return binary.LittleEndian.Uint64(table[i*8:])
}

// outcome is what an entry turned out to be: a hole (kind is not 0), a page, or
// the next table.
type outcome struct {
	kind   Kind
	page   bool
	absent bool // a page behind an entry that is not present
	phys   hypervisor.PhysAddr
}

// decode looks at entry e of level lv.
func (l *layout) decode(lv *level, e uint64) outcome {
	switch {
	case e == 0:
		return outcome{kind: KindNotPresent}
	case e&bitPresent == 0:
		if l.absent != nil && (lv.number == 1 || lv.mayLarge && e&bitLarge != 0) {
			if phys, ok := l.absent(e); ok {
				return outcome{page: true, absent: true, phys: phys &^ (1<<lv.shift - 1)}
			}
		}
		return outcome{kind: KindSwapped}
	}
	if lv.number > 1 && (!lv.mayLarge || e&bitLarge == 0) {
		if e&lv.tableReserved != 0 {
			return outcome{kind: KindReserved}
		}
		return outcome{phys: hypervisor.PhysAddr(e & l.tableMask)}
	}
	if e&lv.pageReserved != 0 {
		return outcome{kind: KindReserved}
	}
	size := uint64(1) << lv.shift
	phys := e & addrMask &^ l.keyMask &^ (size - 1)
	if l.pse36 && lv.number == 2 {
		phys = e&0xffc0_0000 | e>>13&0xff<<32
	}
	return outcome{page: true, phys: hypervisor.PhysAddr(phys)}
}

// permissions narrows perms, those of the levels above, by entry e.
func (l *layout) permissions(lv *level, perms Flags, e uint64) Flags {
	if lv.noPerms {
		return perms
	}
	if e&bitWrite == 0 {
		perms &^= Write
	}
	if e&bitUser == 0 {
		perms &^= User
	}
	if l.nx && e&bitNX != 0 {
		perms |= NX
	}
	return perms
}

// flags returns the flags of the page that entry e turned out to be; perms are
// those of all levels.
func (o outcome) flags(lv *level, perms Flags, e uint64) Flags {
	if o.absent {
		// No bit of such an entry means anything to the CPU.
		return perms&^(Write|User) | NX | Absent
	}
	return perms | pageFlags(lv, e)
}

// pageFlags returns the flags that come from the page's own entry alone.
func pageFlags(lv *level, e uint64) Flags {
	var f Flags
	pat := uint64(bitPAT)
	if lv.number > 1 {
		pat = bitPATLarge
	}
	for _, b := range [...]struct {
		bit  uint64
		flag Flags
	}{{bitGlobal, Global}, {bitAccessed, Accessed}, {lv.dirty, Dirty}, {bitPWT, WriteThrough}, {bitPCD, CacheDisable}, {pat, PAT}} {
		if e&b.bit != 0 {
			f |= b.flag
		}
	}
	return f
}
