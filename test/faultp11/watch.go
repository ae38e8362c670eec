package faultp11

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Calls gives how often fn was entered since ResetCounters, faulty or not, length queries included.
func (c *Control) Calls(fn string) int { return int(c.slot(fn).calls.Load()) }

// TotalCalls gives how often any function was entered: the round trips that a network HSM would have seen.
func (c *Control) TotalCalls() int {
	n := 0
	for i := range c.b.slots {
		n += int(c.b.slots[i].calls.Load())
	}
	return n
}

// Injected gives to how many calls of fn a fault was done. Delays and hangs are not in it.
func (c *Control) Injected(fn string) int { return int(c.slot(fn).injected.Load()) }

// InFlight gives the number of calls, of any function, that were entered and have not returned.
func (c *Control) InFlight() int {
	return c.sum(func(p *process) int64 { return p.inFlight.Load() })
}

// sum adds up what the living processes have.
func (c *Control) sum(of func(p *process) int64) int {
	var n int64
	for i := range c.b.processes {
		p := &c.b.processes[i]
		if pid := p.pid.Load(); pid != 0 && !errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) {
			n += of(p)
		}
	}
	return int(n)
}

// Processes gives the living processes that have the module loaded, but for this one.
func (c *Control) Processes() (pids []int) {
	for i := range c.b.processes {
		if pid := int(c.b.processes[i].pid.Load()); pid != 0 && pid != os.Getpid() && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill ends every process that uses the module with SIGKILL, but for this one: the workers of a program that is killed with
// all that it has started, as a container is.
func (c *Control) Kill() {
	for _, pid := range c.Processes() {
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
	}
}

// WaitAlone waits until no process but this one has the module loaded. The error is ctx's.
func (c *Control) WaitAlone(ctx context.Context) error {
	return wait(ctx, "other processes (negative)", 0, func() int { return -len(c.Processes()) })
}

// MaxInFlight gives the most calls in flight at once in one process since ResetCounters.
func (c *Control) MaxInFlight() int { return int(c.b.maxInFlight.Load()) }

// InFlightOf is InFlight for one function.
func (c *Control) InFlightOf(fn string) int {
	i := number(fn)
	return c.sum(func(p *process) int64 { return p.callsInFlight[i].Load() })
}

// MaxInFlightOf is MaxInFlight for one function.
func (c *Control) MaxInFlightOf(fn string) int { return int(c.slot(fn).maxInFlight.Load()) }

// Hung gives the number of calls of fn that wait in a hang now.
func (c *Control) Hung(fn string) int {
	i := number(fn)
	return c.sum(func(p *process) int64 { return p.callsHung[i].Load() })
}

// OpenSessions gives the sessions that all living processes have open on the real module.
func (c *Control) OpenSessions() int {
	return c.sum(func(p *process) int64 { return p.openSessions.Load() })
}

// MaxOpenSessions gives the highest number of sessions open in one process since ResetCounters.
func (c *Control) MaxOpenSessions() int { return int(c.b.maxOpenSessions.Load()) }

// Logins gives how many C_Login the real module accepted; Calls("C_Login") has the refused ones too.
func (c *Control) Logins() int { return int(c.b.logins.Load()) }

// FinalizedWhileBusy gives how often C_Finalize was called while another call of the same process was in flight, which
// crashes real modules. Here it waits until the real module is idle instead, and is counted.
func (c *Control) FinalizedWhileBusy() int { return int(c.b.finalizedWhileBusy.Load()) }

// Helper gives the process that ForkHelper or ForkDaemon made last; 0: none.
func (c *Control) Helper() int { return int(c.b.helper.Load()) }

// ResetCounters sets all counters to 0, except those of what is now: open sessions and calls in flight. What happens
// at the same time may be counted or not.
func (c *Control) ResetCounters() {
	for i := range c.b.slots {
		s := &c.b.slots[i]
		s.calls.Store(0)
		s.maxInFlight.Store(0)
		s.injected.Store(0)
	}
	c.b.maxInFlight.Store(0)
	c.b.maxOpenSessions.Store(0)
	c.b.logins.Store(0)
	c.b.finalizedWhileBusy.Store(0)
}

// WaitCalls waits until fn was entered at least n times since ResetCounters. The error is ctx's, with what was seen.
func (c *Control) WaitCalls(ctx context.Context, fn string, n int) error {
	return wait(ctx, "calls of "+fn, n, func() int { return c.Calls(fn) })
}

// WaitHung waits until at least n calls of fn wait in a hang. The error is ctx's, with what was seen.
func (c *Control) WaitHung(ctx context.Context, fn string, n int) error {
	return wait(ctx, "hung calls of "+fn, n, func() int { return c.Hung(fn) })
}

// WaitIdle waits until no call is in flight. The error is ctx's, with what was seen.
func (c *Control) WaitIdle(ctx context.Context) error {
	return wait(ctx, "calls in flight (negative)", 0, func() int { return -c.InFlight() })
}

// wait polls: memory that another process changes gives no event.
func wait(ctx context.Context, what string, want int, now func() int) error {
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for now() < want {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d %s, seen %d: %w", want, what, now(), context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}
