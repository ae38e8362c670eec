package migrate

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// named is a Server that is never asked.
type named struct {
	Server
	name string
}

func (n named) Name() string { return n.name }

// A server that gives no answer is left alone, longer each time, and is as good as any once it has answered.
func TestPool(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool([]Server{named{name: "a"}, named{name: "b"}}, time.Minute)
		take := func() (string, time.Duration) {
			began := time.Now()
			_, server, err := p.take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return server.Name(), time.Since(began)
		}
		want := func(name string, wait time.Duration) {
			t.Helper()
			if got, waited := take(); got != name || waited != wait {
				t.Errorf("%s after %s, want %s after %s", got, waited, name, wait)
			}
		}
		want("a", 0)
		want("b", 0)
		p.silent(0, errors.New("lost"))
		want("b", 0)
		want("b", 0)
		time.Sleep(restFirst)
		want("a", 0)
		p.silent(0, errors.New("lost"))
		p.silent(1, errors.New("lost"))
		want("b", restFirst) // a was silent before: twice as long
		p.silent(1, errors.New("lost"))
		want("a", restFirst)
		p.answered(0)
		p.silent(0, errors.New("lost"))
		want("b", restFirst)
		want("a", 0) // after an answer, as at the beginning: both are due at the same time
		p.answered(0)
		p.answered(1)
		want("b", 0)
		want("a", 0)
	})
}

func TestPoolGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("connection refused")
		p := newPool([]Server{named{name: "a"}}, time.Minute)
		began := time.Now()
		for {
			i, _, err := p.take(t.Context())
			if err == nil {
				p.silent(i, lost)
				continue
			}
			if took := time.Since(began); !errors.Is(err, ErrLost) || !errors.Is(err, lost) || took < time.Minute || took > time.Minute+restMost {
				t.Errorf("after %s: %v", took, err)
			}
			return
		}
	})
}
