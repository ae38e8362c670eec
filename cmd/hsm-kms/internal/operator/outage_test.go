package operator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

// outages are what everything depends on. each returns how it begins and ends.
func outages() map[string]func(s *sim, over bool) {
	all := map[string]func(s *sim, over bool){
		"the HSM": func(s *sim, over bool) {
			s.set(func() {
				for _, n := range s.nodes {
					if n.problem = "hsm unreachable"; over {
						n.problem = ""
					}
				}
			})
		},
	}
	for _, how := range []mode{refused, hanging, failing} {
		is := func(over bool) mode {
			if over {
				return up
			}
			return how
		}
		all["etcd "+string(how)] = func(s *sim, over bool) { s.set(func() { s.etcd = is(over) }) }
		all["the plugins "+string(how)] = func(s *sim, over bool) {
			s.set(func() {
				for _, n := range s.nodes {
					n.plugin = is(over)
				}
			})
		}
		all["the API servers "+string(how)] = func(s *sim, over bool) {
			for _, n := range s.nodes {
				n.away(is(over))
			}
		}
	}
	return all
}

// mostRequests is of an operate in an hour, whether something is lost or not.
const mostRequests = 400

// hour lets an hour pass in which nothing can be done, and checks that it is not tried over and over.
func (s *sim) hour() {
	s.t.Helper()
	time.Sleep(2 * time.Minute) // what was under way comes to its end
	var touched int
	s.set(func() { touched = s.touched; clear(s.requests) })
	time.Sleep(time.Hour)
	s.set(func() {
		s.t.Logf("requests: %v", s.requests)
		if s.touched != touched {
			s.t.Errorf("%d objects were written meanwhile", s.touched-touched)
		}
		for node, n := range s.requests {
			if n > mostRequests {
				s.t.Errorf("%d requests of %s", n, node)
			}
		}
	})
	s.running()
}

// An hour without API servers, etcd, plugins or the HSM: no operate ends, nothing is written, requests have a bound, and the
// rotation goes on by itself afterwards. The outage begins while nothing is to be done, and in the middle of the work.
func TestOutage(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for what, outage := range outages() {
		for _, when := range []state.Name{state.Steady, state.Migrating, state.Settling} {
			if sampled() && (when != state.Migrating || !strings.HasSuffix(what, string(hanging))) {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s", what, when), func(t *testing.T) {
				simulated(t, func(t *testing.T) {
					s := simulate(t, 3, nil)
					s.waitState(state.Steady, 10*time.Minute)
					if when != state.Steady {
						began := make(chan struct{})
						s.set(func() { s.on[when] = func(string) { outage(s, false); close(began) } })
						s.rotate()
						<-began
					} else {
						outage(s, false)
					}
					s.hour()
					outage(s, true)
					if when == state.Steady {
						s.waitState(state.Steady, 10*time.Minute)
						s.rotate()
					}
					s.finish()
				})
			})
		}
	}
}

// Where everything is encrypted (*.*) and KMS is down, API servers can read nothing. Operates start all the same, and go on when
// it is back.
func TestStartWithoutKMS(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	simulated(t, func(t *testing.T) {
		s := simulate(t, 3, nil)
		s.waitState(state.Steady, 10*time.Minute)
		both := func(over bool) {
			outages()["the plugins refused"](s, over)
			outages()["the API servers failing"](s, over)
		}
		for _, n := range s.nodes {
			n.kill()
		}
		both(false)
		for _, n := range s.nodes {
			n.start(nil)
		}
		s.hour()
		both(true)
		s.waitState(state.Steady, 10*time.Minute)
		s.rotate()
		s.finish()
	})
}
