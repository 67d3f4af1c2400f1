package scanner

import "sync"

// Limits of a cache, so that a guest cannot make it large.
const (
	maxCacheEntries = 1 << 18
	maxCacheMatches = 1 << 17 // kept in all entries together
)

// cache knows the results of extents scanned in one run, by what they read. A
// page that ten processes share is scanned for the first of them. On a live
// guest the page may change before it is the tenth's turn: findings are then of
// the moment at which it was scanned.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]*cacheEntry
	matches int
}

type cacheEntry struct {
	res     *result // nil while a worker is at it
	waiting []*extent
}

func newCache() *cache { return &cache{entries: map[cacheKey]*cacheEntry{}} }

// begin returns what is to be done with an extent: nothing because the result is
// known (res), nothing because the worker that scans its like will see to it
// (wait), or to scan it, and tell finish.
func (c *cache) begin(k cacheKey, e *extent) (res *result, wait bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch entry := c.entries[k]; {
	case entry == nil:
		if len(c.entries) < maxCacheEntries {
			c.entries[k] = &cacheEntry{}
		}
		return nil, false
	case entry.res == nil:
		entry.waiting = append(entry.waiting, e)
		return nil, true
	default:
		return entry.res, false
	}
}

// finish tells the result for a key and returns the extents that waited for it.
func (c *cache) finish(k cacheKey, res *result) []*extent {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := c.entries[k]
	if entry == nil {
		return nil
	}
	waiting := entry.waiting
	entry.res, entry.waiting = res, nil
	if c.matches += res.size(); c.matches > maxCacheMatches && len(res.hits) > 0 {
		c.matches -= res.size()
		delete(c.entries, k) // the next one is scanned again
	}
	return waiting
}
