package ring

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Chain is one request: buffers of guest memory, which the guest may change
// while they are used.
type Chain struct {
	head uint16
	// Out are the buffers that the device reads, In those that it writes, in
	// order. A buffer is not empty.
	Out, In [][]byte
	// InRanges says where In was when the chain was popped.
	InRanges []hypervisor.Range

	out, in [][]byte // the memory of Out and In
}

// ReadOut copies bytes from the front of Out to p and takes them off it. It
// returns how many.
func (c *Chain) ReadOut(p []byte) int {
	n := 0
	for n < len(p) && len(c.Out) > 0 {
		k := copy(p[n:], c.Out[0])
		n += k
		if c.Out[0] = c.Out[0][k:]; len(c.Out[0]) == 0 {
			c.Out = c.Out[1:]
		}
	}
	return n
}

// WriteIn copies p to the front of In and takes what it filled off it. It returns
// how many bytes.
func (c *Chain) WriteIn(p []byte) int {
	n := 0
	for n < len(p) && len(c.In) > 0 {
		k := copy(c.In[0], p[n:])
		n += k
		if c.In[0] = c.In[0][k:]; len(c.In[0]) == 0 {
			c.In = c.In[1:]
		}
	}
	return n
}

// LastIn takes the last byte off In. It returns nil when there is none.
func (c *Chain) LastIn() []byte {
	if len(c.In) == 0 {
		return nil
	}
	i := len(c.In) - 1
	b := c.In[i]
	last := b[len(b)-1:]
	if c.In[i] = b[:len(b)-1]; len(b) == 1 {
		c.In = c.In[:i]
	}
	return last
}

// OutLen returns the number of bytes that the device may read.
func (c *Chain) OutLen() uint64 { return total(c.Out) }

// InLen returns the number of bytes that the device may write.
func (c *Chain) InLen() uint64 { return total(c.In) }

func total(iov [][]byte) uint64 {
	var n uint64
	for _, b := range iov {
		n += uint64(len(b))
	}
	return n
}

func (c *Chain) reset(head uint16) {
	c.head = head
	c.Out, c.In, c.InRanges = c.out[:0], c.in[:0], c.InRanges[:0]
}

// walk fills c with the chain that begins at descriptor head.
func (r *Ring) walk(c *Chain, head uint16) error {
	c.reset(head)
	table, size := r.desc, uint32(r.size)
	at, indirect := uint32(head), false
	for n := 0; ; n++ {
		if at >= size {
			return fmt.Errorf("%w: descriptor %d of a table of %d", ErrBroken, at, size)
		}
		// One that has more than there can be goes round in a circle.
		if n > MaxChain {
			return fmt.Errorf("%w: a chain of more than %d descriptors", ErrBroken, MaxChain)
		}
		d := loadDescriptor(table, int(at)*descSize)
		if d.flags&descIndirect != 0 {
			if !r.indirect || indirect || d.flags&descNext != 0 {
				return fmt.Errorf("%w: indirect descriptor where there may be none", ErrBroken)
			}
			if d.len == 0 || d.len%descSize != 0 || d.len/descSize > MaxChain {
				return fmt.Errorf("%w: indirect table of %d bytes", ErrBroken, d.len)
			}
			var err error
			if table, err = r.mem.View(hypervisor.PhysAddr(d.addr), uint64(d.len)); err != nil {
				return fmt.Errorf("%w: indirect table: %w", ErrBroken, err)
			}
			size, at, indirect = d.len/descSize, 0, true
			continue
		}
		if err := r.buffer(c, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		at = uint32(d.next)
	}
}

func (r *Ring) buffer(c *Chain, d descriptor) error {
	in := d.flags&descWrite != 0
	if !in && len(c.In) != 0 {
		return fmt.Errorf("%w: a buffer to read behind one to write", ErrBroken)
	}
	if d.len == 0 {
		return nil
	}
	gpa := hypervisor.PhysAddr(d.addr)
	b, err := r.mem.View(gpa, uint64(d.len))
	if err != nil {
		return fmt.Errorf("%w: buffer: %w", ErrBroken, err)
	}
	if in {
		c.In, c.InRanges = append(c.In, b), append(c.InRanges, hypervisor.Range{Start: gpa, Size: uint64(d.len)})
		c.in = c.In
	} else {
		c.Out = append(c.Out, b)
		c.out = c.Out
	}
	return nil
}
