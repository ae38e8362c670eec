package live

import "time"

// SetPatience shortens the wait for etcd's answers.
func (e *Etcd) SetPatience(d time.Duration) { e.patience = d }
