package main

import (
	"math"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/bench"
	"github.com/hsm-kms/hsm-kms/internal/capacity"
)

// rowsAt are those of a token that takes so long for a call and does so many at one time.
func rowsAt(call time.Duration, servers, maxSessions int, clients ...int) []bench.Row {
	rows := []bench.Row{{Op: bench.OpStart, Clients: 1, OpsPerSecond: 20, P50: 50, P99: 60, HSMCallsPerOp: 49}}
	for _, n := range clients {
		atWork := float64(min(n, maxSessions, servers))
		for _, op := range []string{bench.OpSeal, bench.OpOpen} {
			rows = append(rows, bench.Row{
				Op: op, Clients: n, OpsPerSecond: atWork / (2 * call.Seconds()), HSMCallsPerOp: 2,
				P50: 2e3 * call.Seconds() * float64(n) / atWork,
			})
		}
	}
	return rows
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	plugin := capacity.Plugin{
		Seal: 2, Open: 2, Refresh: 6, Start: 49, ProbeInterval: 30 * time.Second, RefreshInterval: 60 * time.Second, MaxSessions: 8,
	}
	plane := capacity.Plane{Nodes: 3, Restarts: 1, Rotations: 0.5, DEKs: 200}
	got := capacityOf(plane, plugin, rowsAt(5*time.Millisecond, 100, 8, 1, 8, 32))
	want := capacityJSON{
		Nodes: 3, RestartsPerNodeDay: 1, RotationsPerDay: 0.5, DEKs: 200,
		CallMilliseconds: 5, MostCallsPerSecond: 1600, LimitedBy: bySessions,
		IdleCallsPerSecond: 3 * (4.0/30 + 6.0/60), IdleShare: 3 * (4.0/30 + 6.0/60) / 1600,
		ColdStartCalls:    49 + 4 + 2 + 400, // connect, probe, seal, open them all
		ColdStartInTurnMS: 5 * 455, ColdStartMS: 5 * (55 + 400.0/8), AllAtOnceMS: 5*55 + 3*400/1.6,
		RotationCalls: 3 * (10 + 2 + 4), CallsPerDay: math.Round(0.7*86400 + 3*455 + 0.5*48),
		SealsPerDay: 3 * (2880 + 4 + 1), KeyLastsDays: math.Floor((1 << 32) / (3 * 2885.0)),
		SessionsIdle: 6, SessionsMost: 27, ControlPlanesAtAHalf: 1142,
	}
	for _, ms := range []*float64{&got.ColdStartMS, &got.AllAtOnceMS, &want.ColdStartMS, &want.AllAtOnceMS} {
		*ms = math.Round(*ms)
	}
	got.IdleShare, want.IdleShare = math.Round(1e9*got.IdleShare), math.Round(1e9*want.IdleShare)
	if got != want {
		t.Errorf("capacity is\n%+v, want\n%+v", got, want)
	}
}

func TestWhatLimits(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		servers, maxSessions int
		clients              []int
		want                 string
	}{
		{1, 8, []int{1, 8, 32}, byToken}, // SoftHSM
		{4, 8, []int{1, 8, 32}, byToken},
		{100, 8, []int{1, 8, 32}, bySessions},
		{100, 1, []int{1, 8}, bySessions},
		{100, 32, []int{1, 8}, byClients},
		{1, 32, []int{1, 8}, byToken},
		{100, 8, []int{1}, byClients},
	} {
		rows := rowsAt(2*time.Millisecond, tc.servers, tc.maxSessions, tc.clients...)
		call, most, clients := measuredIn(rows, tc.maxSessions)
		if got := limitedBy(capacity.Fit(call, most).Servers, tc.maxSessions, clients); got != tc.want {
			t.Errorf("%+v: limited by %s", tc, got)
		}
	}
}

// What a client waits for a session is not what a call takes.
func TestCallWithoutTheWaitForASession(t *testing.T) {
	t.Parallel()
	for _, clients := range []int{1, 8, 32, 256} {
		const call, maxSessions = 5 * time.Millisecond, 8
		got, _, _ := measuredIn(rowsAt(call, 100, maxSessions, clients), maxSessions)
		if off := (got - call).Abs(); off > time.Microsecond {
			t.Errorf("with %d clients on %d sessions a call takes %s, want %s", clients, maxSessions, got, call)
		}
	}
}

func TestNumbersForPeople(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 0.0004: "less than 0.001", 0.0214: "0.021", 0.4: "0.4", 1: "1", 1.5: "1.5", 9.999: "10", 10: "10", 10.04: "10", 12.34: "12.3",
		99.96: "100", 100: "100", 1234.5: "1,235", 28485: "28,485",
	} {
		if got := threePlaces(v); got != want {
			t.Errorf("%v is shown as %s, want %s", v, got, want)
		}
	}
	for d, want := range map[time.Duration]string{30 * time.Second: "30s", 5 * time.Minute: "5m", 90 * time.Second: "90s", 1500 * time.Millisecond: "1.5s"} {
		if got := short(d); got != want {
			t.Errorf("%v is shown as %s, want %s", d, got, want)
		}
	}
	for days, want := range map[float64]string{400: "400 days", 730: "730 days", 16500: "45 years", 496069: "more than 1,000 years"} {
		if got := lasting(days); got != want {
			t.Errorf("%v days are shown as %s, want %s", days, got, want)
		}
	}
}
