package image

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestChunkCache(t *testing.T) {
	c := newChunkCache(300)
	loads := 0
	get := func(i int) {
		t.Helper()
		data, err := c.get(i, 100, func() ([]byte, error) { loads++; return []byte{byte(i)}, nil })
		if err != nil || data[0] != byte(i) {
			t.Fatalf("get(%d) = %v, %v", i, data, err)
		}
		if c.size > c.limit || c.size != 100*len(c.items) || c.order.Len() != len(c.items) {
			t.Fatalf("%d bytes in %d items, bound %d", c.size, len(c.items), c.limit)
		}
	}
	for _, i := range []int{1, 2, 3, 1, 4, 1} { // 2 was used least when 4 came
		get(i)
	}
	if loads != 4 {
		t.Errorf("%d loads, want 4", loads)
	}
	get(2)
	if loads != 5 {
		t.Errorf("%d loads, want 5: 2 had to go", loads)
	}
	boom := errors.New("boom")
	for range 2 {
		if _, err := c.get(9, 100, func() ([]byte, error) { loads++; return nil, boom }); !errors.Is(err, boom) {
			t.Errorf("failed load: %v", err)
		}
	}
	if loads != 7 || c.items[9] != nil {
		t.Errorf("a failure was kept (%d loads)", loads)
	}
	// One chunk larger than all of the cache is kept as long as it is the last.
	if _, err := c.get(10, 1000, func() ([]byte, error) { return nil, nil }); err != nil || len(c.items) != 1 {
		t.Errorf("%d items, %v", len(c.items), err)
	}
}

func TestChunkCacheLoadsOnce(t *testing.T) {
	c := newChunkCache(1000)
	var loads atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 10 {
				if _, err := c.get(i, 100, func() ([]byte, error) { loads.Add(1); return nil, nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := loads.Load(); n != 10 {
		t.Errorf("%d loads of 10 chunks", n)
	}
}
