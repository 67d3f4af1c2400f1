package linux

import (
	"encoding/binary"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const pageLen = int(hypervisor.PageSize)

func gpaOf(offset int) hypervisor.PhysAddr { return hypervisor.PhysAddr(offset) }

// corruption says what of memory is wrong. What is wrong with a word or page
// depends on it, the seed and the place alone.
type corruption struct {
	seed            uint64
	word, ptr, page uint64 // rates: one in n, 0: none
	onePlace, live  bool
}

// corruptMemory is memory of which parts are wrong while it is on. It has no
// views: whoever reads, reads what is wrong.
type corruptMemory struct {
	hypervisor.Memory
	spare hypervisor.PhysAddr // a page that stays right: the kernel's top table

	mu       sync.Mutex
	how      *corruption
	pointers []uint64 // that were met while it was off
	known    bool
	reads    uint64
}

// maxPointers bounds what is kept of the pointers that were met.
const maxPointers = 1 << 14

func (m *corruptMemory) on(c corruption) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.how = &c
}

func (m *corruptMemory) off() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.how = nil
}

// learned ends the time in which pointers are collected.
func (m *corruptMemory) learned() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = true
}

// IsLive says so while what is read changes.
func (m *corruptMemory) IsLive() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.how != nil && m.how.live
}

// ReadPhys reads whole words around p, so that a word is wrong in the same way
// however it is read.
func (m *corruptMemory) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	m.mu.Lock()
	how, learning := m.how, !m.known
	m.reads++
	epoch := m.reads >> 8
	m.mu.Unlock()
	if how == nil {
		n, err := m.Memory.ReadPhys(p, gpa)
		if learning {
			m.learn(p[:n])
		}
		return n, err
	}
	lead := int(gpa & 7)
	b := make([]byte, (lead+len(p)+7)&^7)
	at := gpa &^ 7
	n, err := m.Memory.ReadPhys(b, at)
	seed := how.seed
	if how.live {
		seed += epoch << 32
	}
	for i := 0; i+8 <= n; i += 8 {
		a := at + hypervisor.PhysAddr(i)
		if a>>hypervisor.PageShift == m.spare>>hypervisor.PageShift {
			continue
		}
		v := binary.LittleEndian.Uint64(b[i:])
		binary.LittleEndian.PutUint64(b[i:], m.wrong(how, seed, uint64(a), v))
	}
	n = min(max(n-lead, 0), len(p))
	copy(p, b[lead:lead+n])
	if n == len(p) {
		err = nil
	}
	return n, err
}

func looksLikePointer(v uint64) bool { return v >= uint64(kernelHalf4Level) && v < ^uint64(maxErrno) }

func (m *corruptMemory) learn(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; len(b) >= 8 && len(m.pointers) < maxPointers; b = b[8:] {
		if v := binary.LittleEndian.Uint64(b); looksLikePointer(v) && v&7 == 0 && mix(v)%8 == 0 {
			m.pointers = append(m.pointers, v)
		}
	}
}

// pointer returns one of those that were met.
func (m *corruptMemory) pointer(h uint64) uint64 {
	if len(m.pointers) == 0 {
		return uint64(kernelHalf4Level)
	}
	return m.pointers[h%uint64(len(m.pointers))]
}

// wrong returns what the word v at a is read as.
func (m *corruptMemory) wrong(c *corruption, seed, a, v uint64) uint64 {
	if c.page != 0 {
		if h := mix(seed ^ mix(a>>hypervisor.PageShift)); h%c.page == 0 {
			switch h >> 32 % 4 {
			case 0:
				return 0
			case 1:
				return mix(seed ^ a)
			case 2:
				return m.pointer(mix(seed ^ a))
			default:
				return 0x4141414141414141
			}
		}
	}
	rate, pointer := c.word, looksLikePointer(v)
	if pointer {
		rate = c.ptr
	}
	h := mix(seed ^ mix(a))
	if rate == 0 || h%rate != 0 {
		return v
	}
	h = mix(h)
	if pointer && c.onePlace {
		return m.pointer(seed)
	}
	switch kind := h >> 32 % 8; {
	case kind == 0:
		return 0
	case kind == 1:
		return h
	case kind == 2:
		return v ^ 1<<(h%64)
	case kind == 3:
		return ^uint64(0)
	case pointer && kind == 4:
		return v + h%512*8 - 2048 // near where it was
	case pointer:
		return m.pointer(h)
	case kind == 4:
		return h % 1024
	default:
		return h >> (h % 64)
	}
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
