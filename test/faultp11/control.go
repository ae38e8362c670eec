package faultp11

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The layout of the control file: module/control.h is the same structure, and says what each word means.
const (
	controlMagic   = 0x6661756c74703131
	controlVersion = 5
)

type slot struct {
	fault       atomic.Uint64
	delayMicros atomic.Uint64
	hang        atomic.Uint64
	calls       atomic.Uint64
	maxInFlight atomic.Uint64
	injected    atomic.Uint64
}

type process struct {
	pid           atomic.Uint64
	openSessions  atomic.Int64
	inFlight      atomic.Int64
	callsInFlight [functionCount]atomic.Int64
	callsHung     [functionCount]atomic.Int64
}

const maxProcesses = 64

type block struct {
	magic, version, size atomic.Uint64

	delayAllMicros atomic.Uint64
	maxSessions    atomic.Uint64
	tokenFlags     atomic.Uint64
	hideSlots      atomic.Uint64
	traits         atomic.Uint64
	badKey         atomic.Uint64
	badKeyCode     atomic.Uint64
	dropSessions   atomic.Uint64
	dropLogin      atomic.Uint64
	hangSerial     atomic.Uint64
	wake           atomic.Uint64
	ivMode         atomic.Uint64
	ivSource       atomic.Uint64
	ivCounter      atomic.Uint64

	dropSessionsDone   atomic.Uint64
	dropLoginDone      atomic.Uint64
	maxOpenSessions    atomic.Uint64
	logins             atomic.Uint64
	finalizedWhileBusy atomic.Uint64
	maxInFlight        atomic.Uint64
	helper             atomic.Uint64

	slots     [functionCount]slot
	processes [maxProcesses]process
}

// Control is one module's control file, mapped. All methods take effect at once, for calls that begin later and, where
// they end a hang, for calls that wait now; all are safe from any goroutine and any number of processes. A method that
// is given a function name panics when PKCS#11 v2.40 has no such function.
//
// The mapping (a few pages) stays until the process ends, so that no late call can meet an unmapped page.
type Control struct {
	b *block
}

// Create makes a new control file at path (mode 0600), with no faults and all counters 0. It must not exist yet.
func Create(path string) (*Control, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating the control file: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(unsafe.Sizeof(block{}))); err != nil {
		return nil, fmt.Errorf("creating the control file %s: %w", path, err)
	}
	c, err := mapFile(f)
	if err != nil {
		return nil, err
	}
	c.b.version.Store(controlVersion)
	c.b.size.Store(uint64(unsafe.Sizeof(block{})))
	c.b.magic.Store(controlMagic) // last: a reader that sees it finds the rest in place
	return c, nil
}

// Open opens the control file of a module that this or another process uses.
func Open(path string) (*Control, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the control file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the control file: %w", err)
	}
	notOurs := fmt.Errorf("opening %s: not a control file of this version; make a new one with faultp11.Create", path)
	if st.Size() != int64(unsafe.Sizeof(block{})) {
		return nil, notOurs
	}
	c, err := mapFile(f)
	if err != nil {
		return nil, err
	}
	if c.b.magic.Load() != controlMagic || c.b.version.Load() != controlVersion {
		return nil, notOurs
	}
	return c, nil
}

func mapFile(f *os.File) (*Control, error) {
	data, err := unix.Mmap(int(f.Fd()), 0, int(unsafe.Sizeof(block{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the control file %s: %w", f.Name(), err)
	}
	return &Control{b: (*block)(unsafe.Pointer(unsafe.SliceData(data)))}, nil
}

func (c *Control) slot(fn string) *slot { return &c.b.slots[number(fn)] }

// changedHang wakes the calls that wait in a hang, to look again.
func (c *Control) changedHang() {
	c.b.wake.Add(1)
	wake(&c.b.wake)
}
