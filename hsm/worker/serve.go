package worker

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThalesIgnite/crypto11"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/harden"
)

// Asked reports whether the program was started as a worker.
func Asked(args []string) bool { return len(args) > 1 && args[1] == Command }

// server is the worker's side.
type server struct {
	control, lanes *net.UnixConn
	library        atomic.Pointer[p11.Library] // nil: not loaded
	module         string                      // path of the library
	maker          *crypto11.Context           // guarded by critical
	makerOpen      bool                        // it has opened its session; guarded by critical
	generation     uint64
	connectTimeout atomic.Int64
	initialized    atomic.Bool
	writing        sync.Mutex   // held while an answer is written to control
	asked          atomic.Int32 // control requests under way
	ending         atomic.Bool  // no more are answered

	criticalFile *os.File
	critical     sync.Mutex // the part of the critical lock that is between the goroutines of this process
}

// Main is a worker. It returns when there is nothing for it to do, with what is wrong; otherwise it ends the process.
func Main() error {
	s, err := newServer()
	if err != nil {
		return fmt.Errorf("running as a worker: %w", err)
	}
	go s.serveLanes()
	_ = s.serveControl() // any error means that the program is gone or does not keep to the protocol
	s.leave()
	return nil
}

// newServer makes the process fit for a library that nobody here wrote. Everything of that comes before it is loaded.
func newServer() (*server, error) {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	p11.DieBySignals()
	if err := harden.Process(); err != nil {
		fmt.Fprintln(os.Stderr, "hardening:", err)
	}
	_ = harden.LockMemory() // the program that started this one has said whether it is locked
	unix.Umask(0o077)
	if unix.Getpgrp() != os.Getpid() {
		if err := unix.Setpgid(0, 0); err != nil {
			return nil, fmt.Errorf("leading a process group: %w", err)
		}
	}
	if err := adoptOrphans(); err != nil {
		return nil, fmt.Errorf("becoming the parent of orphans: %w", err)
	}
	open, err := inherited()
	if err != nil {
		return nil, err
	}
	for _, fd := range open {
		if fd != controlFD && fd != lanesFD && fd != criticalFD {
			return nil, fmt.Errorf("descriptor %d was inherited, and this program does not know it", fd)
		}
		unix.CloseOnExec(fd)
	}
	if err := unix.Dup2(2, 1); err != nil {
		return nil, fmt.Errorf("joining standard output to standard error: %w", err)
	}
	s := &server{criticalFile: os.NewFile(criticalFD, "critical")}
	if s.control, err = socketOf(controlFD); err != nil {
		return nil, err
	}
	s.lanes, err = socketOf(lanesFD)
	return s, err
}

// leave ends the process, and what the library has forked, because the program that it serves is gone. It waits at most
// connectTimeout for a call under the critical lock.
func (s *server) leave() {
	go func() {
		time.Sleep(time.Duration(max(s.connectTimeout.Load(), int64(time.Second))))
		endGroup()
	}()
	s.critical.Lock()
	_ = lock(s.criticalFile) // the program that might hold it is gone
	s.finalize()
	endGroup()
}

// endGroup ends the process group that this process leads. While the program lives, that does it.
func endGroup() { _ = unix.Kill(-os.Getpid(), unix.SIGKILL) }

// drainWait is how long calls under way may take before a worker is not ended in good order.
const drainWait = time.Second

// finalize keeps further calls from beginning and ends the library in good order when those under way have returned. false:
// some have not, and C_Finalize under a call crashes libraries.
func (s *server) finalize() bool {
	p11.StopLanes()
	s.ending.Store(true)
	for deadline := time.Now().Add(drainWait); s.busy(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	library := s.library.Load()
	if library == nil {
		return true
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if s.maker != nil {
			_ = s.maker.Close() // the process ends anyway
		}
		if s.initialized.Load() {
			_ = library.Finalize()
		}
	}()
	select {
	case <-ended:
	case <-time.After(drainWait):
	}
	return true
}

// busy reports whether a call is in the library.
func (s *server) busy() bool { return s.asked.Load() > 0 || p11.LanesBusy() > 0 }

// serveLanes starts a lane for each pair of descriptors that comes. The end of the socket is the end of the program.
func (s *server) serveLanes() {
	for {
		requests, answers, err := receiveLane(s.lanes)
		if err != nil {
			s.leave()
		}
		library := s.library.Load()
		if library == nil {
			_, _ = unix.Close(requests), unix.Close(answers)
			continue
		}
		go library.ServeLane(requests, answers)
	}
}

// receiveLane takes one message, which is one byte and two descriptors.
func receiveLane(conn *net.UnixConn) (requests, answers int, err error) {
	data, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return 0, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, 0, err
	}
	var fds []int
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return 0, 0, err
		}
		fds = append(fds, some...)
	}
	if n != 1 || len(fds) != 2 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return 0, 0, errProtocol
	}
	return fds[0], fds[1], nil
}

// serveControl answers requests until the socket ends, each on a goroutine of its own, because one may hang.
func (s *server) serveControl() error {
	for {
		var q request
		if err := readFrame(s.control, &q); err != nil {
			return err
		}
		switch {
		case q.Operation == opLoad: // before anything else
			s.answer(&q, s.do(&q))
		case q.Operation == opEnd:
			go s.end(&q)
		case s.asked.Add(1) > maxAsked:
			return errProtocol
		case s.ending.Load(): // after asked: finalize waits for those
			s.asked.Add(-1)
		default:
			go func() {
				a := s.do(&q)
				s.asked.Add(-1) // before the answer: the next request may be that to end
				s.answer(&q, a)
			}()
		}
	}
}
