package main

import (
	"fmt"
	"math"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/bench"
	"github.com/hsm-kms/hsm-kms/internal/capacity"
)

// capacityJSON is what a control plane asks of a token, and what the token was seen to do. Calls are PKCS#11 calls. Unless
// LimitedBy is the token, it may do more: AllAtOnceMS is then the longest, and ControlPlanesAtAHalf the fewest.
type capacityJSON struct {
	Nodes                int     `json:"nodes"`
	RestartsPerNodeDay   float64 `json:"restartsPerNodeAndDay"`
	RotationsPerDay      float64 `json:"rotationsPerDay"`
	DEKs                 int     `json:"deks"`
	CallMilliseconds     float64 `json:"callMilliseconds"`   // one call, with the fewest clients measured
	MostCallsPerSecond   float64 `json:"mostCallsPerSecond"` // of all rows
	LimitedBy            string  `json:"limitedBy"`          // token, sessions or clients: see limitedBy
	IdleCallsPerSecond   float64 `json:"idleCallsPerSecond"`
	IdleShare            float64 `json:"idleShare"` // of MostCallsPerSecond
	ColdStartCalls       float64 `json:"coldStartCalls"`
	ColdStartMS          float64 `json:"coldStartMilliseconds"`       // every session at work
	ColdStartInTurnMS    float64 `json:"coldStartInTurnMilliseconds"` // one DEK after the other
	AllAtOnceMS          float64 `json:"allNodesAtOnceMilliseconds"`
	RotationCalls        float64 `json:"rotationCalls"`
	CallsPerDay          float64 `json:"callsPerDay"`
	SealsPerDay          float64 `json:"sealsPerDay"`
	KeyLastsDays         float64 `json:"keyLastsDays"` // until 2^32 seals
	SessionsIdle         int     `json:"sessionsIdle"`
	SessionsMost         int     `json:"sessionsMost"`
	ControlPlanesAtAHalf int     `json:"controlPlanesAtAHalf"` // that idle with half of MostCallsPerSecond
}

// The values of capacityJSON.LimitedBy.
const (
	byToken    = "token"
	bySessions = "sessions"
	byClients  = "clients"
)

// capacityOf works it out. rows are those of a whole run: a start, then seals and opens by ascending numbers of clients.
func capacityOf(plane capacity.Plane, p capacity.Plugin, rows []bench.Row) capacityJSON {
	call, most, clients := measuredIn(rows, p.MaxSessions)
	hsm := capacity.Fit(call, most)
	idleSessions, mostSessions := plane.Sessions(p)
	cold := func(nodes, atATime int) float64 { return inMilliseconds(plane.ColdStartTime(p, hsm, nodes, atATime)) }
	return capacityJSON{
		Nodes: plane.Nodes, RestartsPerNodeDay: plane.Restarts, RotationsPerDay: plane.Rotations, DEKs: plane.DEKs,
		CallMilliseconds: inMilliseconds(call), MostCallsPerSecond: math.Round(most), LimitedBy: limitedBy(hsm.Servers, p.MaxSessions, clients),
		IdleCallsPerSecond: math.Round(plane.Idle(p)*1e6) / 1e6, IdleShare: plane.Idle(p) / most,
		ColdStartCalls: plane.ColdStart(p), ColdStartMS: cold(1, p.MaxSessions), ColdStartInTurnMS: cold(1, 1),
		AllAtOnceMS:   cold(plane.Nodes, p.MaxSessions),
		RotationCalls: plane.Rotation(p), CallsPerDay: math.Round(plane.Day(p)),
		SealsPerDay: math.Round(plane.Seals(p)), KeyLastsDays: math.Floor(plane.Lasts(p)),
		SessionsIdle: idleSessions, SessionsMost: mostSessions,
		ControlPlanesAtAHalf: plane.Planes(p, most, 0.5),
	}
}

// measuredIn is how long one call took with the fewest clients (without the wait for a session, where there were fewer of
// those), how many a second there were at most, and with how many clients at most that was looked for.
func measuredIn(rows []bench.Row, maxSessions int) (call time.Duration, most float64, clients int) {
	for _, r := range rows {
		if r.Op == bench.OpStart || r.HSMCallsPerOp == 0 {
			continue
		}
		if r.Op == bench.OpOpen && call == 0 {
			atWork := min(1, float64(maxSessions)/float64(r.Clients)) // a client's share of the time; the rest it waits
			call = max(time.Nanosecond, time.Duration(atWork*r.P50/r.HSMCallsPerOp*float64(time.Millisecond)))
		}
		most, clients = max(most, r.OpsPerSecond*r.HSMCallsPerOp), max(clients, r.Clients)
	}
	return call, most, clients
}

// limitedBy says what kept the rate from being higher: the sessions, when nearly all of them were at work all the time; the
// clients, when there were too few to tell; else the token, or the machine that this runs on.
func limitedBy(atWork, maxSessions, clients int) string {
	workers := min(clients, maxSessions)
	switch {
	case float64(atWork) < 0.75*float64(workers):
		return byToken
	case clients < maxSessions:
		return byClients
	}
	return bySessions
}

func inMilliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// whatLimits is LimitedBy for people.
func whatLimits(t capacityJSON, maxSessions int) string {
	switch t.LimitedBy {
	case bySessions:
		return fmt.Sprintf("all %s were at work: with more (maxSessions) the rate is higher, if the HSM has them and can do more", counted(maxSessions, "session"))
	case byClients:
		return "every client was served at once: with more --clients the rate may be higher"
	}
	return "the token, or this machine, does no more: more sessions or clients do not help"
}
