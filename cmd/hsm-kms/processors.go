package main

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
)

// How long a call into a token takes on average (of its time in C) until it counts as one that waits, and below which it
// no longer does.
const (
	waitsFrom  = 200 * time.Microsecond
	waitsUntil = 100 * time.Microsecond
)

// settles is how long a token counts as one that waits at least: some slow calls among many fast ones, as a busy machine has
// them, must not stop the world at each.
const settles = time.Second

// maxProcessors bounds GOMAXPROCS. Many more than the machine has cost processor time: with 32 sessions at 5 ms a call 33 took 344 us
// of it for an operation, 17 and 10 took 278 and 253, for 2,760, 2,837 and 2,853 operations a second.
const maxProcessors = 16

// processors sets how many threads may run Go code at once (GOMAXPROCS), by how long the calls into the tokens take. It
// is told of each call, and tells it on.
//
// With a token that answers at once it is one. A request is a chain of short steps on several goroutines: with more,
// each step wakes another thread that looks for work and finds none, which costs more than the step.
//
// With a token that is waited for (a network, a TPM) it is one more than there are sessions. While a call is in C the
// Go runtime leaves its processor with it, and may take up to 10 ms to notice that others could use it (sysmon in
// runtime/proc.go sleeps that long when it found nothing to do for a while, and takes a processor only from a call that it
// has seen twice). With one or two processors and calls of some milliseconds all requests then go one after the other.
type processors struct {
	next    envelope.Observer
	many    int
	mean    atomic.Int64 // nanoseconds of an operation's call, over the last 16 or so
	waiting atomic.Bool
	since   atomic.Int64 // unix nanoseconds: when it last began to wait

	mu  sync.Mutex // for set
	set func(n int)
}

// useProcessors begins with one processor and returns the observer that decides from then on. Where an operator set
// GOMAXPROCS it stays as it is.
func useProcessors(cfg *config.Config, next envelope.Observer) envelope.Observer {
	if _, set := os.LookupEnv("GOMAXPROCS"); set {
		return next
	}
	many := 1
	for _, token := range cfg.Tokens {
		many += token.MaxSessions
	}
	p := &processors{next: next, many: min(many, maxProcessors), set: func(n int) { runtime.GOMAXPROCS(n) }}
	p.set(1)
	return p
}

// HSMCall implements envelope.Observer.
func (p *processors) HSMCall(token, function, result string, took time.Duration) {
	p.next.HSMCall(token, function, result, took)
	if !strings.HasPrefix(function, "C_Encrypt") && !strings.HasPrefix(function, "C_Decrypt") && !strings.HasPrefix(function, "C_Sign") {
		return // those are few, and slow on every token
	}
	last := p.mean.Load()
	mean := last + (int64(took)-last)/16
	p.mean.Store(mean) // one lost to another goroutine does not matter
	waits := mean > int64(waitsFrom)
	if p.waiting.Load() {
		waits = mean >= int64(waitsUntil) || time.Since(time.Unix(0, p.since.Load())) < settles
	}
	if p.waiting.CompareAndSwap(!waits, waits) {
		if waits {
			p.since.Store(time.Now().UnixNano())
		}
		go p.follow() // it stops the world for a moment, and a caller is not to wait for that
	}
}

// follow sets what the calls ask for now: of two that were started in a row the later may come first.
func (p *processors) follow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting.Load() {
		p.set(p.many)
		return
	}
	p.set(1)
}
