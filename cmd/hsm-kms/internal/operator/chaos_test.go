package operator

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

// sampled reports whether a part of the cases is enough: in a short run, and with the race detector, which makes the
// simulation six times as slow. make test runs every case without it.
func sampled() bool { return testing.Short() || testworker.RaceEnabled }

// simulated runs a test in a bubble of its own: its clock jumps to the next thing that happens.
func simulated(t *testing.T, do func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, do)
}

// simPatience is how long a rotation of the simulation may take, with all that is done to it.
const simPatience = 2 * time.Hour

// rotateLate rotates so that every state is passed through: the key comes to the last node a minute before its activation.
func (s *sim) rotateLate() {
	last := s.nodes[len(s.nodes)-1]
	s.rotate(last.name)
	go func() {
		time.Sleep(simAnnounce - time.Minute)
		s.set(func() { last.has, last.ready = true, true })
	}()
}

// finish waits for the end of a rotation, retires the key, and checks that no operate ended.
func (s *sim) finish() {
	s.t.Helper()
	s.waitState(state.Retirable, simPatience)
	s.set(func() {
		if n := s.under(s.second); n != len(s.objects) || n == 0 {
			s.t.Errorf("%d of %d objects are under the new key", n, len(s.objects))
		}
		s.retired = true
	})
	s.waitState(state.Steady, 10*time.Minute)
	s.running()
}

// faults are what may be lost for a while. Each returns how it is put right.
func faults() map[string]func(s *sim, leader string) (restore func()) {
	all := map[string]func(s *sim, leader string) func(){
		"the leader": func(s *sim, leader string) func() {
			n := s.node(leader)
			n.kill()
			return func() {
				s.set(func() {
					if s.last.Leader == leader {
						s.t.Error("nobody else leads")
					}
				})
				n.start(nil)
			}
		},
	}
	for _, how := range []mode{refused, hanging, failing} {
		all[fmt.Sprint("etcd ", how)] = func(s *sim, _ string) func() {
			s.set(func() { s.etcd = how })
			return func() { s.set(func() { s.etcd = up }) }
		}
		all[fmt.Sprint("all API servers ", how)] = func(s *sim, _ string) func() {
			for _, n := range s.nodes {
				n.away(how)
			}
			return func() {
				for _, n := range s.nodes {
					n.away(up)
				}
			}
		}
		if how != refused {
			continue
		}
		for _, name := range []string{"n1", "n3"} {
			all[fmt.Sprint("API server of ", name, " ", how)] = func(s *sim, _ string) func() {
				s.node(name).away(how)
				return func() { s.node(name).away(up) }
			}
			all[fmt.Sprint("plugin of ", name, " ", how)] = func(s *sim, _ string) func() {
				s.set(func() { s.node(name).plugin = how })
				return func() { s.set(func() { s.node(name).plugin = up }) }
			}
		}
	}
	for _, name := range []string{"n1", "n2", "n3"} {
		all["operate of "+name] = func(s *sim, _ string) func() {
			n := s.node(name)
			n.kill()
			return func() { n.start(nil) }
		}
	}
	return all
}

// Each operate, the leader, API servers, plugins and etcd are lost once in each state, for four minutes. The rotation comes to
// its end by itself, and the old key is not retirable before (see sim.saw).
func TestKillMatrix(t *testing.T) {
	t.Parallel()
	for _, name := range state.Names() {
		for what, lose := range faults() {
			if sampled() && (what != "the leader" || name != state.Converging && name != state.Migrating && name != state.Settling) {
				continue
			}
			t.Run(fmt.Sprint(name, ", ", what), func(t *testing.T) {
				simulated(t, func(t *testing.T) {
					s := simulate(t, 3, nil)
					s.waitState(state.Steady, 10*time.Minute)
					done := make(chan struct{})
					s.set(func() {
						s.on[name] = func(leader string) {
							restore := lose(s, leader)
							go func() {
								defer close(done)
								time.Sleep(4 * time.Minute)
								restore()
							}()
						}
					})
					s.rotateLate()
					s.finish() // for the state Steady, this is when the fault begins
					<-done
					time.Sleep(10 * time.Minute)
					s.waitState(state.Steady, time.Minute)
					s.running()
				})
			})
		}
	}
}

// oddity is a world that is not as it should be.
type oddity struct {
	begin func(s *sim) // after the rotation has begun
	says  string       // of the block that follows
	end   func(s *sim)
}

func oddities() map[string]oddity {
	return map[string]oddity{
		"one never published": {func(s *sim) { s.node("n3").never() }, "hsm-kms operate publishes from", func(s *sim) { s.node("n3").start(nil) }},
		"one is behind": {func(s *sim) { s.set(func() { s.node("n2").has = false }) }, "n2 does not know it", func(s *sim) {
			s.set(func() { s.node("n2").has, s.node("n2").ready = true, true })
		}},
		"one has not proven the key": {func(s *sim) { s.set(func() { s.node("n2").ready = false }) }, "n2 has not proven it", func(s *sim) { s.set(func() { s.node("n2").ready = true }) }},
		"a clock is an hour behind":  {func(s *sim) { s.set(func() { s.node("n2").skew = -time.Hour }) }, "the right time", func(s *sim) { s.set(func() { s.node("n2").skew = 0 }) }},
		"a clock is an hour ahead":   {func(s *sim) { s.set(func() { s.node("n2").skew = time.Hour }) }, "a clock is wrong", func(s *sim) { s.set(func() { s.node("n2").skew = 0 }) }},
		"an older protocol":          {func(s *sim) { s.set(func() { s.follower().protocol = "0" }) }, "it speaks protocol 0", func(s *sim) { s.set(func() { s.follower().protocol = "" }) }},
		"a newer protocol":           {func(s *sim) { s.set(func() { s.follower().protocol = "2" }) }, "it speaks protocol 2", func(s *sim) { s.set(func() { s.follower().protocol = "" }) }},
		"an object nobody may change": {func(s *sim) { s.set(func() { s.refuses["s-07"] = true }) }, "1 objects could not be rewritten, the first: /registry/secrets/app/s-07", func(s *sim) {
			s.set(func() {
				if n := s.under(s.first.String()); n != 1 {
					s.t.Errorf("%d objects are left, want 1", n)
				}
				delete(s.refuses, "s-07")
			})
		}},
		"admission refuses canaries": {func(s *sim) { s.set(func() { s.refuses[""] = true }) }, "no canaries here", func(s *sim) {
			s.set(func() {
				if n := s.under(s.first.String()); n < 20 {
					s.t.Errorf("%d objects are left: something was rewritten without a proof", n)
				}
				delete(s.refuses, "")
			})
		}},
	}
}

// An oddity blocks with words that name it, and the rotation comes to its end when it is put right.
func TestOddNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for name, c := range oddities() {
		if sampled() && !slices.Contains([]string{"an older protocol", "an object nobody may change"}, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			simulated(t, func(t *testing.T) {
				s := simulate(t, 3, nil)
				s.waitState(state.Steady, 10*time.Minute)
				s.rotate()
				c.begin(s)
				blocked := s.wait(c.says, simPatience, func(status Status) bool {
					return status.State == state.Blocked && strings.Contains(status.Message+status.Hint, c.says)
				})
				s.set(func() {
					if blocked.Hint == "" || strings.Contains(blocked.Hint, "keys retire "+s.node("n2").floor) {
						t.Errorf("%+v", blocked)
					}
				})
				if name == "a clock is an hour ahead" { // that block ends at the activation
					s.waitState(state.Settling, 30*time.Minute)
					c.end(s)
					s.finish()
					return
				}
				time.Sleep(30 * time.Minute)
				s.set(func() {
					if slices.Contains(s.states, state.Retirable) || s.last.State != state.Blocked {
						t.Errorf("half an hour later: %s: %s; it was %v", s.last.State, s.last.Message, s.states)
					}
				})
				c.end(s)
				s.finish()
			})
		})
	}
}

// follower is a node that does not lead. With the lock.
func (s *sim) follower() *simNode {
	return s.nodes[slices.IndexFunc(s.nodes, func(n *simNode) bool { return n.name != s.last.Leader })]
}

// never makes a node that never had an operate: no Lease is there.
func (n *simNode) never() {
	n.stop()
	n.s.api.set(func() {
		delete(n.s.api.objects, "/apis/coordination.k8s.io/v1/namespaces/"+namespace+"/leases/"+nodeLease(n.name))
	})
}

// Two operates that both lead do the same work twice, and no harm.
func TestTwoLeaders(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for _, name := range state.Names() {
		if sampled() && name != state.Proving {
			continue
		}
		t.Run(string(name), func(t *testing.T) {
			simulated(t, func(t *testing.T) {
				s := simulate(t, 3, nil)
				s.waitState(state.Steady, 10*time.Minute)
				s.set(func() { s.on[name] = func(string) { s.fork() } })
				s.rotateLate()
				s.finish()
				time.Sleep(10 * time.Minute)
				leaders := map[string]bool{}
				s.api.set(func() {
					for path, lease := range s.api.objects {
						if strings.Contains(path, "/"+leaderLease+"-") {
							leaders[fmt.Sprint(lease["spec"].(map[string]any)["holderIdentity"])] = true //nolint:forcetypeassert // ours
						}
					}
				})
				if len(leaders) != len(s.nodes) {
					t.Errorf("these led: %v", leaders)
				}
			})
		})
	}
}

// An API server that gets another EncryptionConfiguration while the old key settles would write under it, although etcd is clean
// of it. It is found, and the key is not retirable before that is put right.
func TestStrayedServer(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	simulated(t, func(t *testing.T) {
		s := simulate(t, 3, nil)
		s.waitState(state.Steady, 10*time.Minute)
		s.rotate()
		s.waitState(state.Settling, time.Hour)
		n := s.node("n2")
		s.set(func() { n.strayed = true; n.notice() })
		s.wait("a block", time.Hour, func(status Status) bool {
			return status.State == state.Blocked && strings.Contains(status.Message, n.url+" writes secrets under another key")
		})
		time.Sleep(time.Hour)
		s.set(func() { n.strayed = false; n.notice() })
		s.finish()
	})
}

// fork gives each node a Lease of the leader of its own.
func (s *sim) fork() {
	s.set(func() { s.forked = true })
	s.api.set(func() {
		path := "/apis/coordination.k8s.io/v1/namespaces/" + namespace + "/leases/" + leaderLease
		for _, n := range s.nodes {
			copied := maps.Clone(s.api.objects[path])
			copied["metadata"] = maps.Clone(copied["metadata"].(map[string]any)) //nolint:forcetypeassert // ours
			s.api.objects[path+"-"+n.name] = copied
		}
	})
}
