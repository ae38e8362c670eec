package capacity

import (
	"math"
	"time"
)

// HSM is a token as those meet it who make calls.
type HSM struct {
	Servers int           // calls that it works on at one time; at least 1
	Service time.Duration // how long it works on one call; more than 0
	Network time.Duration // the way there and back beside that
}

// Call is how long one call takes when nobody else is there.
func (h HSM) Call() time.Duration { return h.Network + h.Service }

// Limit is the most calls a second that it can do.
func (h HSM) Limit() float64 { return float64(h.Servers) / h.Service.Seconds() }

// Rate is how many calls a second are made by so many callers, each with one call at a time and no pause: as many as the
// round trip allows, until the HSM is the limit (the asymptotic bounds of a closed queueing network, Muntz and Wong 1974).
// Near the point where the two meet it is too high, by a tenth or so.
func (h HSM) Rate(callers int) float64 {
	return min(float64(callers)/h.Call().Seconds(), h.Limit())
}

// Together is how long it takes so many callers, all at once, to make so many calls each.
func (h HSM) Together(callers int, calls float64) time.Duration {
	if callers == 0 {
		return 0
	}
	return seconds(calls * float64(callers) / h.Rate(callers))
}

// Wait is how long a call waits on average before the HSM begins with it, when calls come independently of each other at
// this rate (a second): Erlang's C formula (M/M/c). Calls that are all equally long wait half of that; that a plugin's calls
// come in trains makes it more again. For a fleet it is therefore a bound, up to about 80 percent of Limit. At Limit and above
// the queue grows without end: the result is then math.MaxInt64.
func (h HSM) Wait(rate float64) time.Duration {
	busy := rate * h.Service.Seconds() // servers at work on average: Erlangs
	left := float64(h.Servers) - busy
	if left <= 0 {
		return math.MaxInt64
	}
	return seconds(erlangC(h.Servers, busy) * h.Service.Seconds() / left)
}

// erlangC is the probability that all servers are at work (Erlang 1917; by the recursion of Erlang B, which does not
// overflow).
func erlangC(servers int, busy float64) float64 {
	b := 1.0
	for n := 1; n <= servers; n++ {
		b = busy * b / (float64(n) + busy*b)
	}
	c := float64(servers)
	return c * b / (c - busy*(1-b))
}

// Sessions is how many sessions must work side by side for a rate of operations (a second), of so many calls each, when
// one call takes so long (Little's law).
func Sessions(rate, calls float64, call time.Duration) int {
	return int(math.Ceil(rate*calls*call.Seconds() - 1e-9)) // what is an integer but for rounding must not become the next one
}

// seconds is a time that may be too long for a Duration.
func seconds(s float64) time.Duration {
	if s >= float64(math.MaxInt64)/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}

// Fit is the HSM of which this was measured: how long one call takes alone, and how many a second there were at most.
func Fit(call time.Duration, limit float64) HSM {
	servers := max(1, int(math.Round(limit*call.Seconds())))
	service := seconds(float64(servers) / limit)
	return HSM{Servers: servers, Service: service, Network: max(0, call-service)}
}
