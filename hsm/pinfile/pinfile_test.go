package pinfile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

const canary = "canary-4711"

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // not subject to the umask
		t.Fatal(err)
	}
	return path
}

func TestReadContent(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("x", pinfile.MaxLength)
	for name, tc := range map[string]struct {
		content, want string
		err           error
	}{
		"bare":                {canary, canary, nil},
		"newline":             {canary + "\n", canary, nil},
		"carriage return":     {canary + "\r\n", canary, nil},
		"spaces are kept":     {" a b \n", " a b ", nil},
		"not UTF-8":           {"\xff\xfe", "\xff\xfe", nil},
		"longest":             {longest, longest, nil},
		"longest and newline": {longest + "\r\n", longest, nil},
		"empty":               {"", "", pinfile.ErrMalformed},
		"newline only":        {"\n", "", pinfile.ErrMalformed},
		"too long":            {longest + "x", "", pinfile.ErrMalformed},
		"much too long":       {strings.Repeat("x", 1<<20), "", pinfile.ErrMalformed},
		"two lines":           {canary + "\nother\n", "", pinfile.ErrMalformed},
		"two newlines":        {canary + "\n\n", "", pinfile.ErrMalformed},
		"NUL":                 {canary + "\x00", "", pinfile.ErrMalformed},
		"bare return":         {canary + "\r", "", pinfile.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := write(t, filepath.Join(t.TempDir(), "pin"), tc.content, 0o400)
			pin, _, err := pinfile.Read(path, pinfile.Rules{})
			if !errors.Is(err, tc.err) {
				t.Fatalf("err = %v, want %v", err, tc.err)
			}
			if err != nil {
				checkError(t, err, path)
			}
			if string(pin.Bytes()) != tc.want {
				t.Errorf("PIN of %d bytes, want %d", len(pin.Bytes()), len(tc.want))
			}
		})
	}
}

// checkError holds an error against the house rules: it says where, has a hint and shows nothing of the PIN.
func checkError(t *testing.T, err error, path string) {
	t.Helper()
	if !strings.Contains(err.Error(), path) || hint.Of(err) == "" || strings.Contains(err.Error()+hint.Of(err), canary) {
		t.Errorf("error %q, hint %q: want the path, a hint and nothing of the PIN", err, hint.Of(err))
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink("good", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("open", filepath.Join(dir, "link-to-open")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "good"), canary, 0o600)
	write(t, filepath.Join(dir, "open"), canary, 0o644)
	write(t, filepath.Join(dir, "group"), canary, 0o440)
	for name, tc := range map[string]struct {
		err  error
		hint string
	}{
		"good":         {nil, ""},
		"link":         {nil, ""},
		"none":         {pinfile.ErrAbsent, "put the token's user PIN there"},
		"open":         {pinfile.ErrUnsafe, "chmod 0400 "},
		"group":        {pinfile.ErrUnsafe, "chmod 0400 "},
		"link-to-open": {pinfile.ErrUnsafe, "chmod 0400 "},
		".":            {pinfile.ErrUnsafe, "plain file"},
		"good/x":       {pinfile.ErrUnreadable, "ls -l "},
	} {
		path := filepath.Join(dir, name)
		_, fromStat := pinfile.Stat(path, pinfile.Rules{})
		_, _, err := pinfile.Read(path, pinfile.Rules{})
		for _, err := range []error{err, fromStat} {
			if !errors.Is(err, tc.err) || !strings.Contains(hint.Of(err), tc.hint) {
				t.Errorf("%s: err = %v (hint %q), want %v (hint %q)", name, err, hint.Of(err), tc.err, tc.hint)
			} else if err != nil {
				checkError(t, err, filepath.Clean(path))
			}
		}
	}
}

func TestForeignOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := write(t, filepath.Join(t.TempDir(), "pin"), canary, 0o400)
	if err := os.Chown(path, 12345, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pinfile.Read(path, pinfile.Rules{}); !errors.Is(err, pinfile.ErrUnsafe) || !strings.Contains(err.Error(), "uid 12345") {
		t.Errorf("err = %v, want ErrUnsafe that names uid 12345", err)
	}
}

// In a Secret volume of a pod with fsGroup the file is root's, and the pod's group reads it.
func TestGroupReads(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	for name, tc := range map[string]struct {
		gid  int
		mode os.FileMode
		err  error
	}{
		"our group":            {os.Getegid(), 0o440, nil},
		"another group":        {4242, 0o440, pinfile.ErrUnsafe},
		"our group may write":  {os.Getegid(), 0o460, pinfile.ErrUnsafe},
		"others may read":      {os.Getegid(), 0o444, pinfile.ErrUnsafe},
		"another group, 0400":  {4242, 0o400, nil},
		"our group may search": {os.Getegid(), 0o450, pinfile.ErrUnsafe},
	} {
		path := write(t, filepath.Join(t.TempDir(), "pin"), canary, tc.mode)
		if err := os.Chown(path, -1, tc.gid); err != nil {
			t.Fatal(err)
		}
		pin, file, err := pinfile.Read(path, pinfile.Rules{GroupReads: true})
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
		if err != nil {
			continue
		}
		pin.Wipe()
		if again, err := pinfile.ReadState(file); err != nil { // as the worker reads it
			t.Errorf("%s: the worker: %v", name, err)
		} else {
			again.Wipe()
		}
		if strict, err := pinfile.Stat(path, pinfile.Rules{}); err == nil && !file.Is(strict) {
			t.Errorf("%s: the rule makes another file of it", name)
		}
	}
}

func TestCredentialsDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "pin"), canary, 0o440) // as systemd makes it
	write(t, filepath.Join(dir, "open"), canary, 0o444)
	write(t, filepath.Join(dir, "group-writable"), canary, 0o460)

	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, _, err := pinfile.Read("pin", pinfile.Rules{}); !errors.Is(err, pinfile.ErrAbsent) || !strings.Contains(hint.Of(err), "LoadCredential=") {
		t.Errorf("without the variable: %v (hint %q)", err, hint.Of(err))
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for name, want := range map[string]error{
		"pin":                         nil,
		filepath.Join(dir, "pin"):     nil,
		"open":                        pinfile.ErrUnsafe,
		"group-writable":              pinfile.ErrUnsafe,
		"none":                        pinfile.ErrAbsent,
		"../" + filepath.Base(dir):    pinfile.ErrAbsent,
		dir + "/../" + "nowhere/none": pinfile.ErrAbsent,
	} {
		if _, _, err := pinfile.Read(name, pinfile.Rules{}); !errors.Is(err, want) {
			t.Errorf("%s: err = %v, want %v", name, err, want)
		}
	}
	// A folder whose name merely begins alike is not the credentials' own.
	t.Setenv("CREDENTIALS_DIRECTORY", dir[:len(dir)-1])
	if _, _, err := pinfile.Read(filepath.Join(dir, "pin"), pinfile.Rules{}); !errors.Is(err, pinfile.ErrUnsafe) {
		t.Errorf("0440 outside the folder: err = %v, want ErrUnsafe", err)
	}
}

func TestIdentityFollowsTheFile(t *testing.T) {
	t.Parallel()
	path := write(t, filepath.Join(t.TempDir(), "pin"), canary, 0o600)
	_, first, err := pinfile.Read(path, pinfile.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := pinfile.Stat(path, pinfile.Rules{}); err != nil || again != first {
		t.Errorf("unchanged file: %+v, %v, want %+v", again, err, first)
	}
	write(t, path+".new", "another", 0o600)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	pin, second, err := pinfile.Read(path, pinfile.Rules{})
	if err != nil || string(pin.Bytes()) != "another" || second == first {
		t.Errorf("a corrected file was not noticed: %+v, %v", second, err)
	}
	text, err := json.Marshal(second)
	var back pinfile.Identity
	if err != nil || json.Unmarshal(text, &back) != nil || back != second {
		t.Errorf("%s came back as %+v, %v", text, back, err)
	}
}

func TestPINIsNeverPrinted(t *testing.T) {
	t.Parallel()
	pin, _, err := pinfile.Read(write(t, filepath.Join(t.TempDir(), "pin"), canary, 0o400), pinfile.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
		fmt.Fprintf(&out, verb+verb, pin, *pin)
		fmt.Fprintf(&out, verb, struct{ pin pinfile.PIN }{*pin}) // unexported: fmt calls no method
		fmt.Fprintf(&out, verb, []*pinfile.PIN{pin})
	}
	text, err := json.Marshal(map[string]any{"a": pin, "b": *pin})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "a", pin, "b", *pin, "c", struct{ P *pinfile.PIN }{pin})
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "a", pin, "b", *pin, "c", struct{ P *pinfile.PIN }{pin})
	for _, leak := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprint([]byte(canary))} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q appears in %s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), "[redacted]") {
		t.Error("nothing says [redacted]")
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	pin, _, err := pinfile.Read(write(t, filepath.Join(t.TempDir(), "pin"), canary+"\n", 0o400), pinfile.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	bytes := pin.Bytes()
	pin.Wipe()
	pin.Wipe()
	if strings.Trim(string(bytes[:cap(bytes)]), "\x00") != "" {
		t.Error("bytes are left after Wipe")
	}
	var none *pinfile.PIN
	none.Wipe()
	(&pinfile.PIN{}).Wipe()
}
