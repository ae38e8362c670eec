package operator

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

// Requests of operate to API servers, for docs/performance.md: in an hour in which nothing is to be done, in one in which a key
// waits to be retired, and for a rotation. HSM_KMS_TEST_NODES=100 adds so many nodes, and minutes.
func TestRequests(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	counts := []int{3, 10}
	if more, err := strconv.Atoi(os.Getenv("HSM_KMS_TEST_NODES")); err == nil {
		counts = append(counts, more)
	}
	for _, nodes := range counts {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			if nodes > 3 && sampled() {
				t.Skip("make test runs it")
			}
			simulated(t, func(t *testing.T) {
				s := simulate(t, nodes, nil)
				time.Sleep(10 * time.Minute) // until they know each other
				s.waitState(state.Steady, simPatience)
				s.requestsOfHour()

				const objects = 1000
				s.set(func() {
					for i := range objects {
						s.objects[fmt.Sprintf("/registry/secrets/app/more-%d", i)] = simObject{s.first.String(), s.revision}
					}
					clear(s.requests)
				})
				s.rotate()
				s.waitState(state.Settling, simPatience)
				s.set(func() {
					made := s.requests[s.last.Leader]
					rewritten := s.patched["secrets"] + s.patched["widgets"]
					t.Logf("%d nodes, from the announcement until the old key settles: leader %d requests for %d rewritten objects", nodes, made, rewritten)
					if rewritten < objects || made > rewritten+20*nodes+100 {
						t.Errorf("more than one request for each object and 20 for each API server")
					}
				})
				s.waitState(state.Retirable, simPatience)
				s.requestsOfHour()
			})
		})
	}
}

// requestsOfHour counts for an hour in which nothing changes. No node may make more than mostRequests an hour; the leader, who
// asks each API server, may make four more for each of them every ten minutes.
func (s *sim) requestsOfHour() {
	s.t.Helper()
	time.Sleep(time.Minute) // what was under way comes to its end
	var before Status
	s.set(func() { before = s.last; clear(s.requests) })
	time.Sleep(time.Hour)
	s.set(func() {
		if s.last.State != before.State || s.last.Leader != before.Leader {
			s.t.Fatalf("it was %s under %s, and is %s under %s", before.State, before.Leader, s.last.State, s.last.Leader)
		}
		var others []int
		sum := 0
		for node, n := range s.requests {
			if sum += n; node != before.Leader {
				others = append(others, n)
			}
		}
		leader, mean := s.requests[before.Leader], sum/len(s.nodes)
		s.t.Attr(string(before.State)+",the-leader", strconv.Itoa(leader)) // make bench takes these
		s.t.Attr(string(before.State)+",each-other-node", strconv.Itoa(slices.Max(others)))
		s.t.Attr(string(before.State)+",mean", strconv.Itoa(mean))
		s.t.Logf("%d nodes, %s, requests per hour: leader %d, another node %d at most, mean %d", len(s.nodes), before.State, leader, slices.Max(others), mean)
		if slices.Max(others) > mostRequests || mean > mostRequests || leader > mostRequests+24*len(s.nodes) {
			s.t.Errorf("more than %d an hour", mostRequests)
		}
	})
}
