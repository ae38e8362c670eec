package hsm

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// maxCounted bounds the keys that are counted: those of the ring, and a mistake must not use memory up.
const maxCounted = 1024

// nonces counts the random nonces that this process has used with each key on one token: requests, probes and self-tests
// alike, since the bound on them (NIST SP 800-38D section 8.3: 2^32 for one key) knows no difference. The map is replaced and
// never changed, so that counting takes no lock.
type nonces struct {
	known atomic.Pointer[map[envelope.KeyID]*atomic.Uint64]
	mu    sync.Mutex // for adding to known
}

// used counts one more. A nil receiver counts nothing.
func (n *nonces) used(id envelope.KeyID) {
	if n == nil {
		return
	}
	if known := n.known.Load(); known != nil {
		if count, ok := (*known)[id]; ok {
			count.Add(1)
			return
		}
	}
	if count := n.add(id); count != nil {
		count.Add(1)
	}
}

func (n *nonces) add(id envelope.KeyID) *atomic.Uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := map[envelope.KeyID]*atomic.Uint64{}
	if known := n.known.Load(); known != nil {
		next = maps.Clone(*known)
	}
	if next[id] == nil {
		if len(next) >= maxCounted {
			return nil
		}
		next[id] = new(atomic.Uint64)
		n.known.Store(&next)
	}
	return next[id]
}

// Nonces is how many random nonces this process has used with each key on this token. It asks nobody.
func (t *Token) Nonces() map[envelope.KeyID]uint64 {
	counts := map[envelope.KeyID]uint64{}
	if known := t.nonces.known.Load(); known != nil {
		for id, count := range *known {
			counts[id] = count.Load()
		}
	}
	return counts
}
