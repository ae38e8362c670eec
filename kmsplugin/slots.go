package kmsplugin

import "sync"

// slots bounds the Encrypt and Decrypt at work at once, over all connections, and keeps one that asks for little from
// being refused because others ask for much. The first half of the slots are anyone's. The second half is shared out evenly
// among the connections: once the first is taken, a connection that holds its share or more gets none.
//
// A connection that is alone can take the first half and no more. All methods may be called from any number of goroutines.
type slots struct {
	half        int
	connections func() int // how many there are; set before the first request

	mu    sync.Mutex
	taken int
	held  map[any]int // by connection, those with any
}

func newSlots(half int) *slots {
	return &slots{half: half, connections: func() int { return 1 }, held: map[any]int{}}
}

// take takes a slot for a request of that connection, if there is one for it. give gives it back.
func (s *slots) take(connection any) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.taken < s.half:
	case s.taken >= 2*s.half || s.held[connection] >= max(1, s.half/max(1, s.connections())):
		return false
	}
	s.taken++
	s.held[connection]++
	return true
}

func (s *slots) give(connection any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.held[connection]--; s.held[connection] == 0 {
		delete(s.held, connection)
	}
}

// full reports whether a connection that is alone would be refused.
func (s *slots) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken >= s.half
}
