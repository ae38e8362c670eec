package growmap

import "sync/atomic"

// MaxCounts bounds the keys of Counts. Only a mistake reaches it.
const MaxCounts = 1024

// Counts are counters by key, of at most MaxCounts keys; what is beyond is not counted. The zero Counts has none,
// and a nil one counts nothing.
type Counts[K comparable] struct {
	counters Map[K, *atomic.Uint64]
}

// Add counts one more.
func (c *Counts[K]) Add(key K) {
	if c == nil {
		return
	}
	counter, ok := c.counters.Load(key)
	if !ok {
		counter, ok = c.counters.Add(key, MaxCounts, func() *atomic.Uint64 { return new(atomic.Uint64) })
	}
	if ok {
		counter.Add(1)
	}
}

// Of is the count of key.
func (c *Counts[K]) Of(key K) uint64 {
	if counter, ok := c.counters.Load(key); ok {
		return counter.Load()
	}
	return 0
}

// All are the counts as they are now.
func (c *Counts[K]) All() map[K]uint64 {
	all := map[K]uint64{}
	for key, counter := range c.counters.All() {
		all[key] = counter.Load()
	}
	return all
}
