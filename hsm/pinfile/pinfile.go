// Package pinfile reads a token's user PIN from a file: the only place a PIN comes from. A PIN that others can read is
// no PIN, and one that is cut short costs a login attempt of the few a token allows, so a file that is not exactly
// right is refused before anything reaches the token. It has the file's rules, a PIN type that cannot be printed, and the
// file's identity; package guard remembers which PIN was refused by which token.
//
// Links are followed, because Kubernetes mounts secrets behind links; the owner, mode and content that count are those
// of the opened file. It depends on ownedfile and hint. Functions are safe for concurrent use and keep nothing: each call reads
// the file again, so a file that was corrected is noticed.
package pinfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// MaxLength is the longest PIN accepted, in bytes. AWS CloudHSM's "user:password" is the longest known and far shorter.
const MaxLength = 256

// Rules are what a configuration allows of a PIN file beyond what is always allowed.
type Rules struct {
	// GroupReads: a group that this process is in may read the file too. In a Secret volume of a pod that is not root, nobody
	// else's group is there.
	GroupReads bool `json:"groupReads,omitempty"`
	// Empty: the file may be empty, and the PIN is then the empty one.
	Empty bool `json:"empty,omitempty"`
}

// The ways in which a PIN file fails. All but ErrChanging need a person.
var (
	// ErrAbsent: there is no such file, or a relative name is used without $CREDENTIALS_DIRECTORY.
	ErrAbsent = errors.New("PIN file is absent")
	// ErrUnreadable: this process may not read the file, or reading failed.
	ErrUnreadable = errors.New("PIN file cannot be read")
	// ErrUnsafe: not a regular file, owned by another user, or open to group or others.
	ErrUnsafe = errors.New("PIN file is unsafe")
	// ErrMalformed: empty, too long, or holding a NUL or a second line.
	ErrMalformed = errors.New("PIN file is malformed")
	// ErrChanging: somebody wrote to the file while it was read; half a PIN must not be tried. Reading again cures it.
	ErrChanging = errors.New("PIN file is being written")
)

// IsError reports whether an error says what is wrong with a PIN file.
func IsError(err error) bool {
	return slices.ContainsFunc(Errors(), func(known error) bool { return errors.Is(err, known) })
}

// Errors are the ways in which a PIN file fails.
func Errors() []error { return []error{ErrAbsent, ErrUnreadable, ErrUnsafe, ErrMalformed, ErrChanging} }

// Identity tells one state of one PIN file from every other, with nothing in it that is derived from the PIN. It is
// comparable. The zero Identity stands for no file: the token asks for the PIN itself, at a PIN pad.
type Identity struct {
	Path   string `json:"path"` // absolute, links not followed
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"`  // bytes
	Ctime  int64  `json:"ctime"` // nanoseconds since 1970; changed by every write, chmod, chown and rename
	// Credential: it lies in $CREDENTIALS_DIRECTORY, where systemd makes it again at every start.
	Credential bool `json:"credential,omitempty"`
	Rules           // under which it was opened
}

// IsPINPad reports whether there is no file: the token asks for the PIN itself.
func (i Identity) IsPINPad() bool { return i == Identity{} }

// Is reports whether both are the same state of the same file, by whatever path it was found. A credential is known by its
// name alone: a restart makes another file of it and says nothing of its content, and a command that is run beside the
// service, with the same credential, has it in another folder.
func (i Identity) Is(other Identity) bool {
	if i.Credential && other.Credential {
		return i.Name() == other.Name()
	}
	i.Path, i.Rules = other.Path, other.Rules
	return i == other
}

// Name is what the file is known by: its path, or the name of the credential.
func (i Identity) Name() string {
	if i.Credential {
		return filepath.Base(i.Path)
	}
	return i.Path
}

// Resolve returns the absolute path that a pinFile of the configuration means: itself when absolute, else the
// credential of that name in $CREDENTIALS_DIRECTORY (systemd's LoadCredential=). Without that variable a relative name
// is ErrAbsent.
func Resolve(pinFile string) (string, error) {
	if filepath.IsAbs(pinFile) {
		return filepath.Clean(pinFile), nil
	}
	dir := credentialsDirectory()
	if dir == "" || !filepath.IsLocal(pinFile) {
		return "", hint.Wrap(fmt.Errorf("resolving pinFile %q: %w: a relative name means a systemd credential, and there is none",
			pinFile, ErrAbsent),
			"in a shell, run the command as the unit does: hsm-kms-as-plugin COMMAND; a command that reads files of root, such as etcd report: as root, with CREDENTIALS_DIRECTORY set to the folder of the PIN file; in the unit: LoadCredential=NAME:FILE, with that NAME in pinFile; without systemd give an absolute path")
	}
	return filepath.Join(dir, pinFile), nil
}

// Read returns the PIN in the file and the identity of the file that it came from. The caller wipes the PIN. Errors
// wrap one of the sentinels above, name the file, and carry a hint; none holds any of the content.
func Read(pinFile string, rules Rules) (*PIN, Identity, error) {
	file, before, err := open(pinFile, rules)
	if err != nil {
		return nil, Identity{}, err
	}
	defer file.Close()
	pin, err := read(file, before, rules)
	if err != nil {
		return nil, Identity{}, err
	}
	return pin, identityOf(file, before, rules), nil
}

// read returns the PIN in file, which was as before says when it was opened and must be so still.
func read(file *os.File, before ownedfile.Info, rules Rules) (_ *PIN, err error) {
	// One byte more than the longest PIN with its newline, so that a longer file shows.
	buf := make([]byte, MaxLength+3)
	defer func() {
		if err != nil {
			clear(buf)
		}
	}()
	n, err := io.ReadFull(file, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, failure(file.Name(), ErrUnreadable, err.Error(), "look at the disk that holds it")
	}
	after, err := ownedfile.Stat(file)
	if err != nil || after != before {
		return nil, failure(file.Name(), ErrChanging, "it changed while it was read",
			"write the new PIN to another file and rename that over this one")
	}
	pin, problem := parse(buf[:n], rules)
	if problem != "" {
		advice := contentHint
		if problem == noPIN {
			advice = emptyHint
		}
		return nil, failure(file.Name(), ErrMalformed, problem, advice)
	}
	clear(buf[len(pin):]) // some modules read the PIN up to a zero byte, whatever its length
	return newPIN(pin), nil
}

// Stat checks the file as Read does, as far as that goes without reading it, and returns its identity.
func Stat(pinFile string, rules Rules) (Identity, error) {
	file, info, err := open(pinFile, rules)
	if err != nil {
		return Identity{}, err
	}
	defer file.Close()
	return identityOf(file, info, rules), nil
}

// open resolves and opens the file and holds its owner and mode against the rules.
func open(pinFile string, rules Rules) (*os.File, ownedfile.Info, error) {
	path, err := Resolve(pinFile)
	if err != nil {
		return nil, ownedfile.Info{}, err
	}
	file, info, err := ownedfile.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, info, failure(path, ErrAbsent, "no such file",
			"put the token's user PIN there, owner root, mode 0400; or correct pinFile in the configuration")
	case err != nil:
		return nil, info, failure(path, ErrUnreadable, err.Error(), "run as the file's owner or as root: ls -l "+path)
	}
	if problem, advice := judge(path, info, rules); problem != "" {
		_ = file.Close() // nothing was written
		return nil, info, failure(path, ErrUnsafe, problem, advice)
	}
	problem, advice := "", contentHint
	switch {
	case info.Size == 0 && !rules.Empty:
		problem = noPIN
		advice = emptyHint
	case info.Size > MaxLength+2: // with a newline
		problem = tooLong
	}
	if problem != "" {
		_ = file.Close() // nothing was written
		return nil, info, failure(path, ErrMalformed, problem, advice)
	}
	return file, info, nil
}

// judge returns what is wrong with the kind, owner or mode of the file at path, and what to do, or "".
func judge(path string, info ownedfile.Info, rules Rules) (problem, advice string) {
	// systemd makes credentials 0440 root:root (and lets the service's user in by ACL, which shows as group bits), in
	// a folder that nobody else can enter.
	forbidden := fs.FileMode(0o077)
	if inCredentials(path) || rules.GroupReads && !info.HasACL() && inGroup(info.GID) {
		forbidden = 0o037
	}
	switch {
	case !info.Regular:
		return "it is not a regular file", "point pinFile at a plain file"
	case !info.OwnerTrusted():
		return fmt.Sprintf("it belongs to uid %d, who is neither root nor uid %d of this process", info.UID, os.Geteuid()),
			info.FixOwner(path)
	case info.Perm&forbidden != 0:
		return fmt.Sprintf("mode %04o gives others access", info.Perm),
			fmt.Sprintf("chmod 0400 %s (a Kubernetes secret volume: defaultMode: 0400)", path)
	}
	return "", ""
}

// inGroup reports whether this process is in the group.
func inGroup(gid uint32) bool {
	groups, err := os.Getgroups()
	return int(gid) == os.Getegid() || err == nil && slices.Contains(groups, int(gid))
}

// Errors of a file's content, and their hints.
var tooLong = fmt.Sprintf("it holds more than %d bytes", MaxLength)

const (
	noPIN       = "it holds no PIN"
	contentHint = "write the user PIN to it, and nothing else"
	emptyHint   = contentHint + "; if the token's PIN is the empty one, set emptyPIN: true"
)

// parse strips one newline and returns the PIN, or what is wrong. The result shares b's memory.
func parse(b []byte, rules Rules) (pin []byte, problem string) {
	pin = b
	if rest, ok := bytes.CutSuffix(pin, []byte("\n")); ok {
		pin = bytes.TrimSuffix(rest, []byte("\r"))
	}
	switch {
	case len(pin) == 0 && !rules.Empty:
		return nil, noPIN
	case bytes.HasPrefix(pin, []byte("\xef\xbb\xbf")):
		return nil, "it begins with a byte order mark, which an editor has put there; it is no part of the PIN"
	case len(pin) > MaxLength:
		return nil, tooLong
	case bytes.ContainsAny(pin, "\x00\r\n"):
		return nil, "it holds a NUL or more than one line"
	}
	return pin, ""
}

func identityOf(file *os.File, info ownedfile.Info, rules Rules) Identity {
	return Identity{Path: file.Name(), Device: info.Device, Inode: info.Inode, Size: info.Size, Ctime: info.Ctime,
		Credential: inCredentials(file.Name()), Rules: rules}
}

// credentialsDirectory returns where systemd put this service's credentials, or "". A relative value is nobody's.
func credentialsDirectory() string {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); filepath.IsAbs(dir) {
		return filepath.Clean(dir)
	}
	return ""
}

// inCredentials reports whether the absolute path lies in $CREDENTIALS_DIRECTORY.
func inCredentials(path string) bool {
	dir := credentialsDirectory()
	return dir != "" && strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func failure(path string, kind error, what, advice string) error {
	return hint.Wrap(fmt.Errorf("reading PIN from %s: %w: %s", path, kind, what), advice)
}
