package worker

import (
	"sync"
	"time"
)

// Group is the workers of a program that may end at any moment. The zero Group is ready. Safe for concurrent use.
type Group struct {
	mu  sync.Mutex // guards the fields below
	all map[*process]struct{}
}

func (g *Group) add(p *process) {
	if g == nil {
		return
	}
	g.mu.Lock()
	if g.all == nil {
		g.all = map[*process]struct{}{}
	}
	g.all[p] = struct{}{}
	g.mu.Unlock()
	go func() {
		<-p.ended
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.all, p)
	}()
}

// Hold returns when no worker is inside C_Login or a call that makes or destroys a key, and keeps each from entering one:
// the program may then end. It waits for each as long as ConnectTimeout at most.
func (g *Group) Hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.all {
		for deadline := time.Now().Add(p.cfg.ConnectTimeout); !p.tryCritical() && time.Now().Before(deadline); {
			select {
			case <-p.ended:
				deadline = time.Time{}
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}
