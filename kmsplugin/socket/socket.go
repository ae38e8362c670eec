// Package socket makes the Unix socket that kube-apiserver connects to, and takes it away again. It depends
// on filelock, ownedfile and hint. One goroutine runs Keep and then Release; Listening may be called by any.
//
// The order is what makes it safe. The folder must be one in which only root and we can rename or remove, so that
// nobody races with what follows. A lock beside the socket is held until Release, so that of two plugins one wins. What
// lies at the path is removed only if it is a socket of ours on which nobody answers. The bind happens under umask 0077,
// so the socket is ours alone from its first moment; group and mode only ever widen that, and the group comes first, so
// that no mode applies to a wrong group. Release removes the file only if it is still the one that was made.
//
// A socket whose file was removed goes on listening, and nobody can connect to it any more. Keep notices, and goes through
// the same order again.
package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ErrInUse: another process serves at the path, or is about to.
var ErrInUse = errors.New("the socket is in use")

// ErrOccupied: something that is not a left-over socket of ours lies at the path.
var ErrOccupied = errors.New("something else is in the way of the socket")

// ErrFolder: the socket's folder lets others replace the socket.
var ErrFolder = errors.New("the socket's folder is not safe")

// Config says where the socket is to be, and for whom.
type Config struct {
	Path  string      // absolute; its folder is made (0755) when missing
	Mode  fs.FileMode // permission bits; none for others. 0: 0600
	Group *uint32     // the socket's group; nil: ours
	// PodVolume: the folder may be a volume that containers of one pod share, and be open to all of them.
	PodVolume bool
}

// Listener is the socket, listening. Close stops the listening and leaves the file, so that a drain can end before the
// next plugin starts; Release, after Close, removes the file and gives the lock up. Keep makes it again when it is removed.
// All methods may be called from any number of goroutines.
type Listener struct {
	cfg     Config
	release sync.Once
	state   state

	mu     sync.Mutex // guards the fields below
	bound  bound
	lock   *filelock.Lock
	closed bool
}

// bound is a socket that is bound to the path, and the file that this made there.
type bound struct {
	listener *net.UnixListener
	made     identity
}

// identity names a file whatever its path: device and inode.
type identity struct{ device, inode uint64 }

// Listen makes the socket. For the time of the bind the umask of the whole process is 0077: a file that another
// goroutine makes at that moment gets a narrower mode than it asked for. Every error needs a person, and has a hint.
func Listen(cfg Config) (*Listener, error) {
	l, err := listen(cfg)
	if err != nil {
		return nil, fmt.Errorf("making the socket %s: %w", cfg.Path, err)
	}
	return l, nil
}

func listen(cfg Config) (*Listener, error) {
	if cfg.Mode == 0 {
		cfg.Mode = 0o600
	}
	if err := checkConfig(cfg); err != nil {
		return nil, err
	}
	if err := prepareFolder(filepath.Dir(cfg.Path), cfg.PodVolume); err != nil {
		return nil, err
	}
	lock, err := takeLock(cfg.Path + ".lock")
	if err != nil {
		return nil, err
	}
	b, err := bind(cfg)
	if err != nil {
		_ = lock.Unlock()
		return nil, err
	}
	return &Listener{cfg: cfg, bound: b, lock: lock}, nil
}

// Accept waits for the next connection, on whatever socket is at the path meanwhile.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		at := l.current()
		conn, err := at.Accept()
		if err == nil || l.current() == at {
			return conn, err
		}
	}
}

func (l *Listener) current() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bound.listener
}

// Addr is the socket's path.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.cfg.Path, Net: "unix"} }

// Close stops the listening for good.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.bound.listener.Close()
}

func checkConfig(cfg Config) error {
	if !filepath.IsAbs(cfg.Path) || filepath.Clean(cfg.Path) != cfg.Path {
		return hint.Wrap(errors.New("the path is not a clean absolute one"), "set socket.path to an absolute path such as /run/hsm-kms/kms.sock")
	}
	// sun_path ends with a NUL (unix(7)); a longer path would fail in bind with a bare "invalid argument".
	if most := len(syscall.RawSockaddrUnix{}.Path) - 1; len(cfg.Path) > most {
		return hint.Wrap(fmt.Errorf("the path has %d bytes, and %d are possible", len(cfg.Path), most), "set socket.path to a shorter path")
	}
	if cfg.Mode&^0o770 != 0 {
		return hint.Wrap(fmt.Errorf("the mode %#o gives rights to others", cfg.Mode), `set socket.mode to "0600", or to "0660" with socket.group`)
	}
	return nil
}

func bind(cfg Config) (bound, error) {
	if err := removeStale(cfg.Path); err != nil {
		return bound{}, err
	}
	listener, err := listenNarrow(cfg.Path)
	if err != nil {
		return bound{}, hint.Wrap(err, "check that this user can write to the socket's folder")
	}
	// net would unlink whatever is at the path on Close, another plugin's socket too.
	listener.SetUnlinkOnClose(false)
	b := bound{listener: listener}
	if err := b.open(cfg); err != nil {
		_ = listener.Close()
		_ = b.remove(cfg.Path)
		return bound{}, err
	}
	return b, nil
}

// umaskLock guards the umask, which belongs to the process as a whole: two binds at once could otherwise leave it
// narrow for good, or let one of them happen under the wide one.
var umaskLock sync.Mutex

func listenNarrow(path string) (*net.UnixListener, error) {
	umaskLock.Lock()
	defer umaskLock.Unlock()
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// open notes which file was made and lets its group and mode have their way.
func (b *bound) open(cfg Config) error {
	made, _, err := lstat(cfg.Path)
	if err != nil {
		return err
	}
	b.made = made
	if cfg.Group != nil {
		if err := os.Lchown(cfg.Path, -1, int(*cfg.Group)); err != nil {
			return hint.Wrap(fmt.Errorf("setting its group: %w", err), "run as root or as a member of socket.group")
		}
	}
	if err := os.Chmod(cfg.Path, cfg.Mode); err != nil {
		return fmt.Errorf("setting its mode: %w", err)
	}
	return nil
}

// Release removes the socket file if it is still ours, and gives the lock up. The lock file stays: removing it would let
// two processes hold a lock on two files of one name. Calls after the first do nothing.
func (l *Listener) Release() error {
	var err error
	l.release.Do(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		err = errors.Join(l.bound.remove(l.cfg.Path), l.lock.Unlock())
	})
	if err != nil {
		return fmt.Errorf("removing the socket: %w", err)
	}
	return nil
}

// remove removes the file at path if it is the one that was made.
func (b *bound) remove(path string) error {
	now, _, err := lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && now != b.made {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

func lstat(path string) (identity, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return identity{}, st, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return identity{uint64(st.Dev), st.Ino}, st, nil // Dev is an int32 on macOS
}
