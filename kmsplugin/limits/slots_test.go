package limits

import "testing"

// A connection that is alone takes half of the slots; a second has its share of the other half, and what is given back is
// free again.
func TestSlots(t *testing.T) {
	t.Parallel()
	s := NewSlots(4)
	take := func(connection string, want int) {
		t.Helper()
		got := 0
		for s.Take(connection) {
			got++
		}
		if got != want {
			t.Errorf("%s takes %d, want %d", connection, got, want)
		}
	}
	s.Share(func() int { return 2 })
	take("first", 4)
	if !s.Full() {
		t.Error("it is not full for a connection that is alone")
	}
	take("second", 2)
	for range 2 {
		s.Give("second")
	}
	take("third", 2)
	for range 2 {
		s.Give("third")
	}
	for range 4 {
		s.Give("first")
	}
	if slots, connections := s.Taken(); slots != 0 || connections != 0 || s.Full() {
		t.Errorf("%d slots of %d connections are taken, full: %v", slots, connections, s.Full())
	}
}
