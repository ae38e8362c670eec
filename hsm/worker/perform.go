package worker

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// answer sends an answer.
func (s *server) answer(q *request, a *answer) {
	a.header = q.header
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := writeFrame(s.control, a); err != nil {
		_ = s.control.Close()
	}
}

// end ends the process in good order, unless a call is in the library.
func (s *server) end(q *request) {
	if !s.finalize() {
		s.answer(q, &answer{Failed: wrapError(errors.New("calls are under way"))})
		return
	}
	s.answer(q, &answer{})
	unix.Exit(0)
}

// do makes the calls of a request and reports each of them in the answer.
func (s *server) do(q *request) *answer {
	a, loaded := &answer{}, s.library.Load()
	switch {
	case q.Operation == opLoad:
		a.Failed = wrapError(s.load(q))
		return a
	case loaded == nil || q.Generation != s.generation:
		a.Failed = wrapError(errProtocol)
		return a
	}
	library := loaded.With(func(function string, rv p11.RV, took time.Duration) {
		if len(a.Calls) < maxCalls {
			a.Calls = append(a.Calls, call{function, rv, took})
		}
	})
	a.Failed = wrapError(s.perform(library, q, a))
	p11.TameSignals()
	return a
}

func (s *server) perform(library *p11.Library, q *request, a *answer) (err error) {
	switch q.Operation {
	case opInitialize:
		if err = library.Initialize(); err == nil {
			s.initialized.Store(true)
		}
	case opSlots:
		a.Slots, err = library.Slots()
		a.Slots = a.Slots[:min(len(a.Slots), maxListed)]
	case opTokenInfo:
		info, infoErr := library.TokenInfo(q.Slot)
		a.Token, err = wrapTokenInfo(info), infoErr
	case opMechanism:
		info, infoErr := library.Mechanism(q.Slot, q.Mechanism)
		a.Mechanism, err = &info, infoErr
	case opSessionInfo:
		info, infoErr := library.SessionInfo(q.Session)
		a.Session, err = &info, infoErr
	case opFind:
		a.Objects, err = library.FindSecretKeys(q.Session, q.Label, q.Limit)
	case opFindData:
		a.Objects, err = library.FindData(q.Session, q.Owner, q.Label, q.Limit)
	case opAttributes:
		a.Values, err = library.Attributes(q.Session, q.Object, q.Attributes)
	case opLookAtPIN:
		look, lookErr := pinfile.LookAt(*q.PIN, q.Key)
		a.PIN, err = &look, lookErr
	case opLogin:
		err = s.underLock(func() error { return library.Login(q.Session, *q.PIN) })
	case opCreateData:
		err = s.underLock(func() error { return library.CreateData(q.Session, q.Owner, q.Label, q.Value) })
	case opDestroy:
		err = s.underLock(func() error { return library.DestroyObject(q.Session, q.Object) })
	case opOpenMaker:
		err = s.underLock(func() error { return s.openMaker(library, q.Slot, q.PIN) })
	case opMake:
		err = s.underLock(func() error { return s.make(q.Secret) })
	}
	return err
}

// load is the first request.
func (s *server) load(q *request) error {
	build, err := buildID(programPath())
	switch {
	case err != nil:
		return err
	case build != q.Load.Build:
		return ErrBuild
	case s.library.Load() != nil:
		return errProtocol
	}
	s.generation, s.module = q.Generation, q.Load.Module
	s.connectTimeout.Store(int64(q.Load.ConnectTimeout))
	if err := s.endWithProgram(); err != nil {
		return err
	}
	library, err := p11.Load(q.Load.Module, q.Load.Reserved)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLoad, err)
	}
	s.library.Store(library)
	p11.TameSignals()
	return nil
}

// endWithProgram has the process end when leave should have ended it, and could not.
func (s *server) endWithProgram() error {
	conn, err := s.lanes.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := conn.Control(func(fd uintptr) {
		err = p11.EndWith(fd, time.Duration(s.connectTimeout.Load())+2*drainWait)
	})
	return errors.Join(err, controlErr)
}

// errAlone: nobody is left to whom the outcome could be told.
var errAlone = errors.New("the program that asked for it has ended")

// isAlone reports whether the program has ended. The kernel knows it before the goroutines that read the sockets do.
func (s *server) isAlone() bool {
	alone := true
	conn, err := s.lanes.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) {
			polled := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(polled, 0)
			for errors.Is(err, unix.EINTR) {
				_, err = unix.Poll(polled, 0)
			}
			alone = err != nil || polled[0].Revents != 0 // POLLHUP
		})
	}
	return alone || err != nil
}

// underLock makes a call during which the process must not be killed. It begins none when the program has ended: what
// that asked for and was not begun is not done later.
func (s *server) underLock(f func() error) error {
	s.critical.Lock()
	defer s.critical.Unlock()
	if err := lock(s.criticalFile); err != nil {
		return fmt.Errorf("taking the critical lock: %w", err)
	}
	if s.isAlone() {
		return errAlone
	}
	err := f()
	if unlockErr := unlock(s.criticalFile); unlockErr != nil {
		return errors.Join(err, fmt.Errorf("releasing the critical lock: %w", unlockErr))
	}
	return err
}

// buildID identifies a program's file. The worker must run the one that was started, because the protocol has no version.
func buildID(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("looking at the worker's program: %w", err)
	}
	return fmt.Sprintf("%d-%d-%d-%d", st.Dev, st.Ino, st.Size, st.Mtim.Nano()), nil
}
