package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// module is one loaded PKCS#11 library. Tokens in it share its initialisation: C_Finalize ends the sessions
// and logins of all of them.
type module struct {
	path    string
	library *p11.Library
	flight  *flight
	workers workers
	tokens  []*Token // those of the configuration that live in it; fixed before the first call

	recovering  chan struct{} // holds one value while some token of it recovers
	initialized bool          // guarded by recovering
	lastInit    atomic.Int64  // unix nanoseconds: when it was last initialised, or begun to be anew
	lost        atomic.Bool   // it said that it is not initialised: nothing in it works until it is
}

// modules finds the module of each file. A file is known by device and inode, so a link to a module is the
// same module.
type modules struct {
	byFile map[fileID]*module
}

type fileID struct{ device, inode uint64 }

func (m *modules) load(path, reserved string) (*module, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: finding PKCS#11 module: %w", ErrConfiguration, err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%w: finding PKCS#11 module %s: no inode", ErrConfiguration, path)
	}
	id := fileID{uint64(stat.Dev), stat.Ino}
	if known := m.byFile[id]; known != nil {
		return known, nil
	}
	library, err := p11.Load(path, reserved)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	loaded := &module{path: path, library: library, flight: newFlight(), workers: newWorkers(), recovering: make(chan struct{}, 1)}
	m.byFile[id] = loaded
	return loaded, nil
}

// lock takes the right to recover; the caller must unlock.
func (m *module) lock(ctx context.Context) error {
	select {
	case m.recovering <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *module) unlock() { <-m.recovering }

// initialize makes the module ready, once. CKR_CRYPTOKI_ALREADY_INITIALIZED is success: nobody else in this
// process uses the module, so it is the outcome of an earlier call that succeeded and reported otherwise.
func (m *module) initialize(api p11.API) error {
	if m.initialized {
		return nil
	}
	err := api.Initialize()
	if err != nil && !hasRV(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return fmt.Errorf("initialising module %s: %w", m.path, err)
	}
	m.initialized = true
	m.lost.Store(false)
	m.lastInit.Store(time.Now().UnixNano())
	return nil
}

// anyHangs tells whether a call into the module hangs, so that waiting for it would hold up the tokens that work.
func (m *module) anyHangs() bool {
	for _, t := range m.tokens {
		if hanging, _ := m.flight.hanging(t.cfg.Name, t.cfg.CallTimeout); hanging > 0 {
			return true
		}
	}
	return false
}

// finalize ends the module so that initialize begins anew, with the generations of every token in it. self is
// the caller's own call, the only one that may be in flight: it waits for the others until ctx ends. When one has not
// returned by then nothing is touched.
func (m *module) finalize(ctx context.Context, self *call, api p11.API, why string) error {
	resume, err := m.flight.drain(ctx, self)
	if err != nil {
		return m.held()
	}
	defer resume()
	m.lastInit.Store(time.Now().UnixNano())
	for _, t := range m.tokens {
		t.drop(why)
		t.wakeUp()
		_ = t.closeRetired(api) // C_Finalize closes what this cannot
	}
	err = api.Finalize()
	if err != nil && !hasRV(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		return fmt.Errorf("finalising module %s: %w", m.path, err)
	}
	m.initialized = false
	for _, t := range m.tokens {
		t.forgetRetired()
	}
	return nil
}

// held says which call keeps the module from being finalised.
func (m *module) held() error {
	what, age := m.flight.longest()
	return fmt.Errorf("finalising module %s: %s has not returned for %s: %w", m.path, what, age.Round(time.Millisecond), errAbandoned)
}

func (m *module) initializedAt() time.Time { return time.Unix(0, m.lastInit.Load()) }

// shuttingDown is the reason for dropping a connection that is no news.
const shuttingDown = "the program ends"

// shutdownWait is how long a shutdown waits for calls that are still in flight.
const shutdownWait = 2 * time.Second

// shutdown ends the module at the end of the process, unless a call hangs in it: then it is left alone.
func (m *module) shutdown() {
	m.workers.stop()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWait)
	defer cancel()
	ended := make(chan struct{})
	go func() { // C_CloseSession and C_Finalize can hang too, and nobody waits for them then
		defer close(ended)
		if m.lock(ctx) != nil {
			return
		}
		defer m.unlock()
		if m.initialized {
			_ = m.finalize(ctx, nil, m.library, shuttingDown) // the process ends anyway
		}
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// isAway tells errors that say only that somebody ran out of time.
func isAway(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAbandoned)
}
