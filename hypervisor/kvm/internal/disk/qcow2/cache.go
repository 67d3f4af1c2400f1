package qcow2

// maxPage is how much of a table is read and written at once.
const maxPage = 4096

// cacheBytes bounds the pages that are kept. At 64 KiB a cluster 8 MiB are the
// L2 tables of 64 GiB of disk.
const cacheBytes = 8 << 20

// pageKind is what a page is of, which says when it may be written.
type pageKind uint8

const (
	pageRefcount pageKind = iota
	pageL2
)

// page is a part of an L2 table or refcount block. Those that are changed, and
// those that a Flush is writing, stay in memory; the others are on the cache's
// list of what can go, the least recently used one last.
type page struct {
	off     uint64 // in the image file
	kind    pageKind
	data    []byte
	dirty   bool
	writing bool

	prev, next *page // on the list; nil when it is not on it
}

// cache has the pages, by their offset. The image's mutex guards it.
type cache struct {
	file   Storage
	size   uint64 // of a page
	max    int    // pages; more only while that many are changed
	pages  map[uint64]*page
	pinned int // dirty or writing
	dirty  []*page
	list   page // the ring of clean pages, most recently used first
}

func newCache(f Storage, pageSize uint64) *cache {
	c := &cache{file: f, size: pageSize, max: int(cacheBytes / pageSize), pages: map[uint64]*page{}}
	c.list.prev, c.list.next = &c.list, &c.list
	return c
}

// get returns the page with the byte at off of the image file.
func (c *cache) get(off uint64, kind pageKind) (*page, error) {
	off &^= c.size - 1
	if p := c.pages[off]; p != nil {
		if p.next != nil {
			c.unlink(p)
			c.link(p)
		}
		return p, nil
	}
	var data []byte
	if len(c.pages) >= c.max && c.list.prev != &c.list {
		old := c.list.prev
		c.unlink(old)
		delete(c.pages, old.off)
		data = old.data
	} else {
		data = make([]byte, c.size)
	}
	if err := c.file.ReadAt(data, off); err != nil {
		return nil, err
	}
	p := &page{off: off, kind: kind, data: data}
	c.pages[off] = p
	c.link(p)
	return p, nil
}

// change marks a page as changed.
func (c *cache) change(p *page) {
	if p.next != nil {
		c.unlink(p)
		c.pinned++
	}
	if !p.dirty {
		p.dirty = true
		c.dirty = append(c.dirty, p)
	}
}

// take returns the changed pages, for writing: written is called with each then.
func (c *cache) take() []*page {
	pages := c.dirty
	c.dirty = nil
	for _, p := range pages {
		p.dirty, p.writing = false, true
	}
	return pages
}

// written ends the writing of a page.
func (c *cache) written(p *page) {
	p.writing = false
	if !p.dirty {
		c.pinned--
		c.link(p)
	}
}

// forget drops what is known of [off, off+n), which is written past the cache.
// Nothing of it may be pinned.
func (c *cache) forget(off, n uint64) {
	for at := off; at < off+n; at += c.size {
		if p := c.pages[at]; p != nil && p.next != nil {
			c.unlink(p)
			delete(c.pages, at)
		}
	}
}

// full reports whether so much is changed that it should be written before more.
func (c *cache) full() bool { return c.pinned > c.max/2 }

func (c *cache) link(p *page) {
	p.prev, p.next = &c.list, c.list.next
	p.prev.next, p.next.prev = p, p
}

func (c *cache) unlink(p *page) {
	p.prev.next, p.next.prev = p.next, p.prev
	p.prev, p.next = nil, nil
}
