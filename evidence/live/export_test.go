package live

import "time"

// SetPatience shortens the wait for etcd's answers.
func (e *Etcd) SetPatience(d time.Duration) { e.patience = d }

// SetFarSight has ranges cut where more than n objects follow a page.
func (e *Etcd) SetFarSight(n int64) { e.farSight = n }

// Cuts are the parts that what follows a page in [start, end) is cut into, as pairs of start and end.
func Cuts(end, first, last string) (parts [][2]string) {
	for _, r := range (keyRange{last + "\x00", end}).cuts(first, last) {
		parts = append(parts, [2]string{r.start, r.end})
	}
	return parts
}
