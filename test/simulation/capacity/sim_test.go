package capacity

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/capacity"
)

// sim is a world in which calls to one HSM are all that takes time. Times are seconds.
type sim struct {
	hsm    capacity.HSM
	random *rand.Rand
	// The shares by which one call's service and way differ from another's, up and down, uniformly. Where no two differ,
	// callers fall into step and never wait: no network is like that.
	varies, wayVaries float64
	memoryless        bool // service is exponential instead

	now    float64
	serial int
	events events
	busy   int
	queue  []arrival
	head   int

	from  float64 // what is before is not measured
	calls int
	waits []float64 // in the HSM's queue
	took  []float64 // from the caller's side
}

type arrival struct {
	at, sent float64
	done     func()
}

type event struct {
	at     float64
	serial int // first come, first served
	do     func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}

func newSim(hsm capacity.HSM, seed uint64) *sim {
	return &sim{hsm: hsm, random: rand.New(rand.NewPCG(seed, 1)), wayVaries: 0.5}
}

// after has something done later.
func (s *sim) after(d float64, do func()) {
	s.serial++
	heap.Push(&s.events, event{s.now + d, s.serial, do})
}

// run lets time pass until then, or until nothing is left to be done.
func (s *sim) run(until float64) {
	for len(s.events) > 0 && s.events[0].at <= until {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
	}
}

// call is one call of somebody: the way there, the queue, the work, the way back.
func (s *sim) call(done func()) {
	sent := s.now
	s.after(s.way(), func() {
		s.queue = append(s.queue, arrival{s.now, sent, done})
		s.serve()
	})
}

// about is a time that varies.
func (s *sim) about(d time.Duration, share float64) float64 {
	return d.Seconds() * (1 + share*(2*s.random.Float64()-1))
}

// way is one way between caller and HSM.
func (s *sim) way() float64 { return s.about(s.hsm.Network/2, s.wayVaries) }

// serve lets idle servers begin.
func (s *sim) serve() {
	for s.busy < s.hsm.Servers && s.head < len(s.queue) {
		a := s.queue[s.head]
		s.head++
		if s.head == len(s.queue) {
			s.queue, s.head = s.queue[:0], 0
		}
		s.busy++
		began := s.now
		service := s.about(s.hsm.Service, s.varies)
		if s.memoryless {
			service = s.hsm.Service.Seconds() * s.random.ExpFloat64()
		}
		s.after(service, func() {
			s.busy--
			s.serve()
			s.after(s.way(), func() { s.returned(a, began) })
		})
	}
}

func (s *sim) returned(a arrival, began float64) {
	if s.now >= s.from {
		s.calls++
		s.waits = append(s.waits, began-a.at)
		s.took = append(s.took, s.now-a.sent)
	}
	a.done()
}

// sequence makes n calls, one after the other.
func (s *sim) sequence(n int, done func()) {
	if n == 0 {
		done()
		return
	}
	s.call(func() { s.sequence(n-1, done) })
}

// forever is somebody who calls without a pause.
func (s *sim) forever() { s.call(s.forever) }

// probing is a plugin that begins now: calls of a round, the pause, and so on. settles: its first pause is shortened at
// random, to a half at least, as kmsplugin/health does.
func (s *sim) probing(calls int, pause float64, settles bool) {
	s.sequence(calls, func() {
		wait := pause
		if settles {
			wait -= s.random.Float64() * pause / 2
		}
		s.after(wait, func() { s.probing(calls, pause, false) })
	})
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(max(len(values), 1))
}

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
