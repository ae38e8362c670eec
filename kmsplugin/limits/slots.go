package limits

import "sync"

// Slots bounds the requests at work at once, over all connections, and keeps one that asks for little from being refused
// because others ask for much. The first half of the slots are anyone's. The second half is shared out evenly among the
// connections: once the first is taken, a connection that holds its share or more gets none.
//
// A connection that is alone can take the first half and no more. All methods may be called from any number of goroutines.
type Slots struct {
	half int

	mu          sync.Mutex // guards the fields below; a listener's comes after it
	connections func() int // how many there are
	taken       int
	held        map[any]int // by connection, those with any
}

// NewSlots makes twice as many slots as half. There is one connection, until Share is called.
func NewSlots(half int) *Slots {
	return &Slots{half: half, connections: func() int { return 1 }, held: map[any]int{}}
}

// Share tells by whom the second half is shared: connections gives how many there are.
func (s *Slots) Share(connections func() int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connections = connections
}

// Take takes a slot for a request of that connection, if there is one for it. Give gives it back.
func (s *Slots) Take(connection any) bool {
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

// Give gives a slot back.
func (s *Slots) Give(connection any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.held[connection]--; s.held[connection] == 0 {
		delete(s.held, connection)
	}
}

// Full reports whether a connection that is alone would be refused.
func (s *Slots) Full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken >= s.half
}

// Taken is how many slots are taken, and by how many connections.
func (s *Slots) Taken() (slots, connections int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken, len(s.held)
}
