// Package softhsm makes private SoftHSM tokens for the tests and the demo: each in a folder of its own, with its own
// configuration file, so that the machine's token store is never touched. It makes, copies and
// moves such folders; what is done with a token is up to the caller.
//
// SoftHSM finds its configuration through SOFTHSM2_CONF, an environment variable of the whole process that it reads at
// C_Initialize. A child process gets it through Env; a test that loads the module itself sets it (t.Setenv), cannot be
// parallel then, and must finalise the module before it goes to another token.
package softhsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// Token is a SoftHSM token in a folder. Its methods do not guard against each other.
type Token struct {
	Dir     string // softhsm2.conf, tokens/ and the PIN files
	Module  string // path of libsofthsm2.so
	Label   string // CKA label of the token; find it by this, its slot number changes
	PINFile string // mode 0600, the user PIN and a newline
}

// New makes a token in dir, which is made if need be and must not hold one yet. An empty pin means a random one. The
// PIN is passed to softhsm2-util on its command line, which other users of the machine can see: for tokens that protect
// nothing only.
func New(ctx context.Context, dir, label, pin string) (*Token, error) {
	module, err := Module()
	if err != nil {
		return nil, err
	}
	t := &Token{Dir: dir, Module: module, Label: label}
	if _, err := os.Lstat(t.Conf()); err == nil {
		return nil, fmt.Errorf("making a token in %s: there is one already", dir)
	}
	if err := os.MkdirAll(t.Store(), 0o700); err != nil {
		return nil, fmt.Errorf("making the token's folder: %w", err)
	}
	if err := t.writeConf(); err != nil {
		return nil, err
	}
	return t, t.init(ctx, pin)
}

// Another makes a second token in the same store: one module then shows both, as an HSM with two partitions does.
func (t *Token) Another(ctx context.Context, label, pin string) (*Token, error) {
	if label == t.Label {
		return nil, fmt.Errorf("making another token: the label %q is taken", label)
	}
	other := &Token{Dir: t.Dir, Module: t.Module, Label: label}
	return other, other.init(ctx, pin)
}

// init initialises the token in its store and writes the PIN file.
func (t *Token) init(ctx context.Context, pin string) error {
	if pin == "" {
		pin = rand.Text()
	}
	t.PINFile = filepath.Join(t.Dir, t.Label+".pin")
	if err := os.WriteFile(t.PINFile, []byte(pin+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the PIN file: %w", err)
	}
	cmd := proc.Command(ctx, "softhsm2-util", "--init-token", "--free", "--label", t.Label, "--so-pin", rand.Text(), "--pin", pin)
	cmd.Env = append(os.Environ(), t.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initialising the SoftHSM token %q: %w: %s", t.Label, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Conf is the path of the token's SoftHSM configuration.
func (t *Token) Conf() string { return filepath.Join(t.Dir, "softhsm2.conf") }

// Store is the folder that holds the token's objects.
func (t *Token) Store() string { return filepath.Join(t.Dir, "tokens") }

// Env is what a process needs in its environment to see this token.
func (t *Token) Env() []string { return []string{"SOFTHSM2_CONF=" + t.Conf()} }

// PIN reads the PIN, for tests that log in themselves.
func (t *Token) PIN() (string, error) {
	data, err := os.ReadFile(t.PINFile)
	if err != nil {
		return "", fmt.Errorf("reading the PIN file: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

func (t *Token) writeConf() error {
	// Log level ERROR: SoftHSM writes to syslog, and the tests provoke what it would warn about.
	conf := "directories.tokendir = " + t.Store() + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(t.Conf(), []byte(conf), 0o600); err != nil {
		return fmt.Errorf("writing the SoftHSM configuration: %w", err)
	}
	return nil
}

// CopyTo copies the store with all its tokens and keys to another folder, which must not exist: the same keys on a
// second HSM. Serial, label and PIN are those of the original. Nobody may write to the original meanwhile.
func (t *Token) CopyTo(dir string) (*Token, error) {
	if err := os.CopyFS(dir, os.DirFS(t.Dir)); err != nil {
		return nil, fmt.Errorf("copying the token: %w", err)
	}
	c := &Token{Dir: dir, Module: t.Module, Label: t.Label, PINFile: filepath.Join(dir, filepath.Base(t.PINFile))}
	// CopyFS makes files and folders readable to all that the umask does not keep out, and a plugin refuses such a PIN.
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		mode := os.FileMode(0o600)
		if err == nil && d.IsDir() {
			mode = 0o700
		}
		return errors.Join(err, os.Chmod(path, mode))
	})
	if err != nil {
		return nil, fmt.Errorf("closing the copy to others: %w", err)
	}
	return c, c.writeConf()
}

// CopyNew copies the objects that a copy of the token lacks, as a vendor's tool copies a new key to the other HSMs.
// Nobody may write to either meanwhile; a process that has the copy open sees them at its next look.
func (t *Token) CopyNew(to *Token) error {
	// SoftHSM looks for new objects only when the token's generation has changed, so that comes last.
	for _, pattern := range []string{"*.object", "generation"} {
		from, err := filepath.Glob(filepath.Join(t.Store(), "*", pattern))
		if err != nil {
			return fmt.Errorf("listing the token's objects: %w", err)
		}
		for _, path := range from {
			if err := copyInto(path, filepath.Join(to.Store(), filepath.Base(filepath.Dir(path))), pattern == "generation"); err != nil {
				return fmt.Errorf("copying an object to another token: %w", err)
			}
		}
	}
	return nil
}

// copyInto puts a copy of a file into a folder in one step: SoftHSM must not find half an object.
func copyInto(path, folder string, replace bool) error {
	target := filepath.Join(folder, filepath.Base(path))
	if _, err := os.Lstat(target); err == nil && !replace {
		return nil
	}
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err
	}
	return atomicfile.WriteState(target, data)
}

// TakeAway moves the store away, as if the HSM had been unplugged: a process that has the module open sees
// CKR_OBJECT_HANDLE_INVALID and the like until it initialises the module again. The returned function puts it back.
func (t *Token) TakeAway() (putBack func() error, err error) {
	away := t.Store() + ".away"
	if err := os.Rename(t.Store(), away); err != nil {
		return nil, fmt.Errorf("taking the token away: %w", err)
	}
	return func() error {
		// SoftHSM makes a missing store again when it is initialised meanwhile; it holds nothing then.
		if err := os.Remove(t.Store()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("putting the token back: %w", err)
		}
		if err := os.Rename(away, t.Store()); err != nil {
			return fmt.Errorf("putting the token back: %w", err)
		}
		return nil
	}, nil
}
