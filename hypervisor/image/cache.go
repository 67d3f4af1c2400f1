package image

import (
	"container/list"
	"sync"
)

// chunkCache keeps the chunks that were used last, decompressed, up to a bound
// in bytes. Who asks for a chunk that is being decompressed waits for it.
type chunkCache struct {
	mu    sync.Mutex
	limit int
	size  int
	items map[int]*list.Element // by index of the chunk
	order list.List             // of *cached, the last used in front
}

type cached struct {
	index int
	size  int
	once  sync.Once
	data  []byte
	err   error
}

func newChunkCache(limit int) *chunkCache {
	return &chunkCache{limit: limit, items: make(map[int]*list.Element)}
}

// get returns chunk index, size bytes long, which load makes. The caller must
// not change it. Failures are not kept.
func (c *chunkCache) get(index, size int, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	e, ok := c.items[index]
	if ok {
		c.order.MoveToFront(e)
	} else {
		e = c.order.PushFront(&cached{index: index, size: size})
		c.items[index] = e
		c.size += size
		for c.size > c.limit && c.order.Len() > 1 {
			c.remove(c.order.Back())
		}
	}
	c.mu.Unlock()
	it := e.Value.(*cached)
	it.once.Do(func() { it.data, it.err = load() })
	if it.err != nil {
		c.mu.Lock()
		if c.items[index] == e {
			c.remove(e)
		}
		c.mu.Unlock()
	}
	return it.data, it.err
}

func (c *chunkCache) remove(e *list.Element) {
	it := c.order.Remove(e).(*cached)
	delete(c.items, it.index)
	c.size -= it.size
}
