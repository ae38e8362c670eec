// Package growmap has a map for counters that are few, live as long as the process and are counted on the path of each
// request. It depends on no other package.
//
// Concurrency: all methods may be called from any number of goroutines. Reading takes no lock and, unlike sync.Map with its
// interface keys, makes no allocation: a map is replaced by a larger one and never changed.
package growmap

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Map only grows. The zero Map is empty; it must not be copied.
type Map[K comparable, V any] struct {
	known atomic.Pointer[map[K]V]
	mu    sync.Mutex // held to replace known
}

// Load returns the value of key, if there is one.
func (m *Map[K, V]) Load(key K) (value V, ok bool) {
	value, ok = m.All()[key]
	return value, ok
}

// Add returns the value of key, which create makes if there is none. A map of limit keys takes no more: ok is false then.
func (m *Map[K, V]) Add(key K, limit int, create func() V) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.All()
	if value, ok = known[key]; ok || len(known) >= limit {
		return value, ok
	}
	next := make(map[K]V, len(known)+1)
	maps.Copy(next, known)
	value = create()
	next[key] = value
	m.known.Store(&next)
	return value, true
}

// All is the map as it is now; it must not be changed.
func (m *Map[K, V]) All() map[K]V {
	if known := m.known.Load(); known != nil {
		return *known
	}
	return nil
}
