package main

import (
	"testing"
	"testing/synctest"
	"time"
)

type noObserver struct{}

func (noObserver) HSMCall(string, string, string, time.Duration) {}

// A token that is waited for gets a processor for each session, one that answers at once has the program run on one, and
// a single slow call changes nothing.
func TestProcessorsFollowTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := make(chan int, 1)
		p := &processors{next: noObserver{}, many: 9, set: func(n int) { set <- n }}
		calls := func(n int, function string, took time.Duration) (changed int) {
			if function == "pause" {
				time.Sleep(took)
			}
			for range n {
				p.HSMCall("hsm-a", function, "CKR_OK", took)
			}
			synctest.Wait()
			select {
			case changed = <-set:
			default:
			}
			return changed
		}
		for _, step := range []struct {
			n        int
			function string
			took     time.Duration
			want     int // 0: as before
		}{
			{100, "C_Encrypt", 10 * time.Microsecond, 0},
			{1, "C_Encrypt", 3 * time.Millisecond, 0},
			{100, "C_Login", 50 * time.Millisecond, 0},
			{100, "C_DecryptInit", 5 * time.Millisecond, 9},
			{100, "C_Sign", 150 * time.Microsecond, 0},
			{100, "C_Decrypt", 10 * time.Microsecond, 0}, // it may be slow again at once
			{1, "pause", settles, 0},
			{1, "C_Decrypt", 10 * time.Microsecond, 1},
			{1, "C_Encrypt", 2 * time.Second, 9}, // one that hung
		} {
			if got := calls(step.n, step.function, step.took); got != step.want {
				t.Errorf("after %d calls of %s that took %s: %d, want %d", step.n, step.function, step.took, got, step.want)
			}
		}
	})
}

// A slow call now and then, which moves the mean up and down across both bounds, changes it twice a second at most.
func TestProcessorsDoNotFlap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		changes := 0
		p := &processors{next: noObserver{}, many: 9, set: func(int) { changes++ }}
		start := time.Now()
		call := func(took time.Duration) {
			time.Sleep(took)
			p.HSMCall("hsm-a", "C_Encrypt", "CKR_OK", took)
			synctest.Wait()
		}
		for range 500 {
			call(5 * time.Millisecond)
			for range 60 {
				call(10 * time.Microsecond)
			}
		}
		if most := 2*int(time.Since(start)/settles) + 2; changes == 0 || changes > most {
			t.Errorf("%d changes in %s, want at most %d", changes, time.Since(start), most)
		}
	})
}
