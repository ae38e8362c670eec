package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// ObserveHold adds what the outage hold has. state must not block. Call it once, and not at all when outageHold is off.
func (m *Metrics) ObserveHold(state func() *holdfile.State) {
	c := &collector{}
	var (
		limit  = c.describe("hold_limit_seconds", "outageHold: how long the plugin may answer without the HSM within seven days.")
		used   = c.describe("hold_used_seconds", "How much of hold_limit_seconds was used within the last seven days.")
		armed  = c.describe("hold_armed", "1: the plugin would answer if the HSM went away now, and holds every DEK on its list.")
		active = c.describe("hold_active", "1: the plugin answers without the HSM.")
		until  = c.describe("hold_until_timestamp_seconds", "When the hold ends at the latest. Absent: the plugin does not answer without the HSM.")
		listed = c.describe("hold_listed_deks", "DEKs that are to be held.")
		held   = c.describe("hold_held_deks", "DEKs that are held.")
		full   = c.describe("hold_list_full", "1: the list has all the DEKs that fit in it.")
	)
	c.collect = func(ch chan<- prometheus.Metric) {
		s := state()
		sendGauge(ch, limit, s.Limit.Seconds())
		sendGauge(ch, used, s.Used.Seconds())
		sendBool(ch, armed, s.Armed)
		sendBool(ch, active, s.Holding)
		if s.Holding {
			sendGauge(ch, until, unixSeconds(s.Until))
		}
		sendGauge(ch, listed, float64(s.Listed))
		sendGauge(ch, held, float64(s.Held))
		sendBool(ch, full, s.Full)
	}
	m.registry.MustRegister(c)
}
