package growmap

import (
	"sync"
	"testing"
)

// TestCounts: nothing is lost while keys are added, and what is beyond the limit is not counted.
func TestCounts(t *testing.T) {
	t.Parallel()
	var c Counts[int]
	if c.Of(0) != 0 || len(c.All()) != 0 {
		t.Error("the zero Counts is not empty")
	}
	const goroutines, keys = 4, MaxCounts + 10
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for key := range keys {
				c.Add(key)
			}
		})
	}
	wg.Wait()
	if len(c.All()) != MaxCounts {
		t.Errorf("%d keys, want %d", len(c.All()), MaxCounts)
	}
	for key, count := range c.All() {
		if count != goroutines || c.Of(key) != count {
			t.Errorf("key %d: %d, want %d", key, count, goroutines)
		}
	}
	if c.Of(keys) != 0 {
		t.Error("a key that was never counted has a count")
	}
}

// TestReadingAllocatesNothing: it is on the path of each request.
func TestReadingAllocatesNothing(t *testing.T) {
	type key struct{ token, function string }
	var m Map[key, int]
	m.Add(key{"a", "f"}, 1, func() int { return 1 })
	if n := testing.AllocsPerRun(100, func() { m.Load(key{"a", "f"}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
