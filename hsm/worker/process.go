package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// Command is the argument that makes the program a worker.
const Command = "worker"

// The descriptors of a worker beside the standard three.
const (
	controlFD  = 3
	lanesFD    = 4
	criticalFD = 5
)

// Config says which library a worker loads, and for whom.
type Config struct {
	Token          string // its name in the configuration
	Program        string // path of the program that is the worker; empty: this one
	Module         string // path of the library
	Reserved       string // pReserved of C_Initialize
	Environment    []string
	ConnectTimeout time.Duration // for loading, and for a call under the critical lock before the worker is killed
	Generation     uint64        // tells this worker's answers from another's
	Hook           p11.Hook      // told of every PKCS#11 call that has returned
	Log            *slog.Logger
	Group          *Group // that the worker joins; nil: none
}

var (
	// ErrLoad: the library cannot be loaded.
	ErrLoad = errors.New("the PKCS#11 module does not load")
	// ErrBuild: a program of another build answered.
	ErrBuild = errors.New("the worker is another build of the program")
)

// process is a worker as the program that started it sees it.
type process struct {
	cfg            Config
	cmd            *exec.Cmd
	control, lanes *net.UnixConn
	critical       *os.File

	writing sync.Mutex // held while a request is written to control

	mu       sync.Mutex           // guards the fields below
	sequence uint64               // of the last control request
	asked    map[uint64]*exchange // those that have not been answered
	gone     bool                 // no more answers come
	closed   bool                 // this program's ends are closed
	all      map[*lane]struct{}
	sessions map[p11.Session]*lane
	overdue  map[any]time.Time // calls that no one waits for any more, and when they began

	late atomic.Int32 // len(overdue)

	ending atomic.Bool   // this program ends it
	ended  chan struct{} // closed when it has ended
	why    error         // why it has ended: wraps p11.ErrEnded; set before ended is closed
	died   bool          // it has ended by itself; set before ended is closed
}

// Start starts a worker and has it load the library. The caller ends the client's worker.
func Start(ctx context.Context, cfg Config) (*Client, error) {
	p, err := spawn(cfg)
	if err != nil {
		return nil, fmt.Errorf("starting a worker for the PKCS#11 module: %w", err)
	}
	c := &Client{process: p}
	build, err := buildID(cmp.Or(cfg.Program, programPath()))
	if err == nil {
		_, err = c.For(ctx, cfg.ConnectTimeout).ask(request{header: header{Operation: opLoad}, Load: &loading{
			Build: build, Module: cfg.Module, Reserved: cfg.Reserved, ConnectTimeout: cfg.ConnectTimeout,
		}})
	}
	if err != nil {
		c.End()
		return nil, err
	}
	return c, nil
}

// spawn starts the process.
func spawn(cfg Config) (*process, error) {
	control, controlEnd, err := socketPair()
	if err != nil {
		return nil, err
	}
	lanes, lanesEnd, err := socketPair()
	if err != nil {
		return nil, errors.Join(err, control.Close(), controlEnd.Close())
	}
	critical, err := lockFile()
	if err != nil {
		return nil, errors.Join(err, control.Close(), controlEnd.Close(), lanes.Close(), lanesEnd.Close())
	}
	output, outputEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, control.Close(), controlEnd.Close(), lanes.Close(), lanesEnd.Close(), critical.Close())
	}
	if open, err := inherited(); err == nil { // from the program that started this one; otherwise the worker would refuse to run
		for _, fd := range open {
			unix.CloseOnExec(fd)
		}
	}
	p := &process{
		cfg: cfg, control: control, lanes: lanes, critical: critical,
		cmd: &exec.Cmd{
			Path: cmp.Or(cfg.Program, programPath()), Args: []string{os.Args[0], Command, cfg.Token}, Env: cfg.Environment,
			Stdout: outputEnd, Stderr: outputEnd, ExtraFiles: []*os.File{controlEnd, lanesEnd, critical},
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		},
		asked: map[uint64]*exchange{}, all: map[*lane]struct{}{}, sessions: map[p11.Session]*lane{},
		overdue: map[any]time.Time{}, ended: make(chan struct{}),
	}
	err = p.cmd.Start()
	_, _, _ = controlEnd.Close(), lanesEnd.Close(), outputEnd.Close()
	if err != nil {
		_ = output.Close()
		p.close()
		return nil, err
	}
	go drain(output, p.ended, cfg.Log)
	cfg.Group.add(p)
	go p.readAnswers()
	go p.watch()
	return p, nil
}

// watch waits for the end of the process, whatever ended it, and says so.
func (p *process) watch() {
	pid := p.cmd.Process.Pid
	if awaitExit(pid) {
		_ = unix.Kill(-pid, unix.SIGKILL) // what the library forked; the group's number is not given away before the wait
	}
	err := p.cmd.Wait()
	go reapGroup(pid)
	status := "exit status 0"
	if err != nil {
		status = err.Error()
	}
	during := p.during()
	p.why = fmt.Errorf("%w: %s, during %s", p11.ErrEnded, status, during)
	if p.died = !p.ending.Load(); p.died {
		p.cfg.Log.Error("the process of the PKCS#11 module has ended by itself", "module", p.cfg.Module, "status", status, "during", during,
			"hint", "the library crashed or ended it: see its own log, and ask its vendor; the plugin goes on")
	}
	close(p.ended)
	p.close()
}

// reapGroup waits for what was in a process group whose leader has ended, and was killed with it: orphans come to the first
// process of a container, which this program may be.
func reapGroup(leader int) {
	for {
		if _, err := unix.Wait4(-leader, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return // there are none
		}
	}
}

// during is what the worker was asked for when it ended.
func (p *process) during() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, a := range p.asked {
		names = append(names, string(a.header.Operation))
	}
	for l := range p.all {
		if op := l.doing.Load(); op != 0 {
			names = append(names, strings.Join(functions(op), " or "))
		}
	}
	if len(names) == 0 {
		return "no call"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

// close closes this program's ends.
func (p *process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	_, _, _ = p.control.Close(), p.lanes.Close(), p.critical.Close()
	for l := range p.all {
		l.close()
	}
}

// lost is the error of a call whose answer cannot come any more. A worker that does not keep to the protocol, or closes a
// socket, and lives is ended.
func (p *process) lost() error {
	select {
	case <-p.ended:
		return p.why
	case <-time.After(lostWait):
	}
	go p.kill()
	return fmt.Errorf("%w: it broke off", p11.ErrEnded)
}

// lostWait is how long the end of a process may be heard of after the end of its sockets.
const lostWait = 200 * time.Millisecond

// Ended is closed when the worker has ended, whatever ended it.
func (p *process) Ended() <-chan struct{} { return p.ended }

// Why is what ended it, once Ended is closed. It wraps p11.ErrEnded.
func (p *process) Why() error { return p.why }

// Died reports whether it has ended by itself, once Ended is closed.
func (p *process) Died() bool { return p.died }

// Resident is how much memory is resident in the worker, in bytes; 0: it has ended, or the system does not say.
func (p *process) Resident() uint64 {
	select {
	case <-p.ended:
		return 0
	default:
		return resident(p.cmd.Process.Pid)
	}
}

// Hanging counts the calls that have not returned for longer than limit and that no one waits for, and says when the
// latest of them began.
func (p *process) Hanging(limit time.Duration) (n int, since time.Time) {
	if p.late.Load() == 0 {
		return 0, since
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, began := range p.overdue {
		if time.Since(began) <= limit {
			continue
		}
		n++
		if began.After(since) {
			since = began
		}
	}
	return n, since
}

func (p *process) noteOverdue(what any, began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.overdue[what] = began
	p.late.Store(int32(len(p.overdue)))
}

func (p *process) noteReturned(what any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.overdue, what)
	p.late.Store(int32(len(p.overdue)))
}

// endWait is how long a worker in which no call hangs may take to close its sessions and finalise the module.
const endWait = 2 * time.Second

// End ends the worker and returns when it has ended: in good order where no call is under way, else by SIGKILL under the
// critical lock. It may be called more than once.
func (c *Client) End() {
	c.ending.Store(true)
	select {
	case <-c.ended:
		return
	default:
	}
	if n, _ := c.Hanging(0); n == 0 {
		if _, err := c.For(context.Background(), endWait).ask(request{header: header{Operation: opEnd}}); err == nil {
			select {
			case <-c.ended:
				return
			case <-time.After(endWait):
			}
		}
	}
	c.kill()
	<-c.ended
}

// EndNow ends the worker by SIGKILL as soon as it is outside C_Login and the calls that make or destroy a key, so that none
// of these begins in it any more. It reports whether it has ended, within ctx.
func (c *Client) EndNow(ctx context.Context) bool {
	c.ending.Store(true)
	for !c.tryCritical() {
		select {
		case <-c.ended:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	c.shoot()
	select {
	case <-c.ended:
		return true
	case <-ctx.Done():
		return false
	}
}

// kill ends the process with SIGKILL, holding the critical lock if it can be had in time.
func (p *process) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.ConnectTimeout)
	defer cancel()
	if !(&Client{process: p}).EndNow(ctx) {
		p.shoot()
	}
}

func (p *process) shoot() {
	select {
	case <-p.ended: // the number may be another process's by now
	default:
		_ = p.cmd.Process.Kill()
	}
}

// tryCritical takes the critical lock if the worker does not hold it.
func (p *process) tryCritical() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && tryLock(p.critical)
}
