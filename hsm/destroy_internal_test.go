package hsm

import (
	"testing"
	"time"
)

// A reading that a replacement of the worker overtakes, or the end of the worker, is made again: the act that needs it does
// not fail for that, whenever it happens.
func TestDestroyOutlivesWorker(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *rig){
		"replaced": func(r *rig) {
			r.token.mu.Lock()
			gen := r.token.gen
			r.token.mu.Unlock()
			r.token.requestSwap(gen, "the test says so")
		},
		"dies": func(r *rig) {
			r.token.mu.Lock()
			w := r.token.gen.worker
			r.token.mu.Unlock()
			w.(*fakeWorker).end("signal", true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for after := 50 * time.Millisecond; after < 6*time.Second; after += 250 * time.Millisecond {
				inBubble(t, 3, nil, func(r *rig) {
					r.connect()
					r.hsm.set(func(c fakeCall) fakeFault {
						if c.worker == 1 {
							return fakeFault{takes: 500 * time.Millisecond}
						}
						return fakeFault{}
					})
					time.AfterFunc(after, func() { end(r) })
					all, err := r.set.Destroy(r.ctx, r.id)
					if err != nil || len(all) != 1 || all[0].Outcome != Destroyed {
						r.t.Errorf("%s after %s: %+v, %v", name, after, all, err)
					}
				})
			}
		})
	}
}
