package hsm

// workers are the goroutines on which operations are inside a module. They are kept, because a new one for each
// operation grows its stack on the way into C: a tenth of the time that SoftHSM takes. There are as many as
// operations were at work at once, which the permits bound; one whose call hangs is not waited for.
type workers struct {
	jobs chan func()
	end  chan struct{} // closed when none is to be kept
}

func newWorkers() workers { return workers{jobs: make(chan func()), end: make(chan struct{})} }

// do has job done by a worker that is free, or by a new one. It does not wait.
func (w workers) do(job func()) {
	select {
	case w.jobs <- job:
	default:
		go w.work(job)
	}
}

func (w workers) work(job func()) {
	for {
		job()
		select {
		case job = <-w.jobs:
		case <-w.end:
			return
		}
	}
}

// stop lets those that are free go, and the others when they have ended.
func (w workers) stop() { close(w.end) }
