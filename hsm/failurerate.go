package hsm

import (
	"fmt"
	"sync"
	"time"
)

// A token of which many calls fail is replaced, whatever single checks find. Not counted are lost sessions, which are
// replaced one by one, and ciphertexts that the token refuses while it opens what it sealed itself.
const (
	rateWindow = time.Minute
	rateCalls  = 100 // at least, within the window
	rateFailed = 20  // one in so many: 5 %
)

// failureRate counts the calls of one window.
type failureRate struct {
	mu            sync.Mutex // guards the fields below
	began         time.Time
	calls, failed int
}

// note counts a call. It returns why the token is to be replaced, once in a window; empty: it is not.
func (f *failureRate) note(failed bool) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.began) >= rateWindow {
		f.began, f.calls, f.failed = now, 0, 0
	}
	f.calls++
	if !failed {
		return ""
	}
	f.failed++
	if f.calls < rateCalls || f.failed*rateFailed < f.calls {
		return ""
	}
	why := fmt.Sprintf("%d of %d calls failed within a minute", f.failed, f.calls)
	f.calls, f.failed = 0, 0
	return why
}
