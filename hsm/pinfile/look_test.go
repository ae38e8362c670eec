package pinfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func pinIn(t *testing.T, content string) Identity {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := Stat(path, Rules{})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// A tag goes by the PIN and the key alone.
func TestTag(t *testing.T) {
	t.Parallel()
	tag := func(content, key string) uint32 {
		look, err := LookAt(pinIn(t, content), []byte(key))
		if err != nil || look.Tag >= 1<<20 {
			t.Fatalf("%+v, %v", look, err)
		}
		return look.Tag
	}
	first := tag("1234\n", "key")
	if tag("1234", "key") != first {
		t.Error("the same PIN in another file has another tag")
	}
	if tag("1235\n", "key") == first || tag("1234\n", "another key") == first {
		t.Error("another PIN, or another key, gives the same tag")
	}
	changed := pinIn(t, "1234")
	changed.Ctime++
	if _, err := LookAt(changed, []byte("key")); !errors.Is(err, ErrChanging) {
		t.Errorf("a file in another state: %v", err)
	}
}

func TestBlanksAreNoticed(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]bool{"1234\n": false, "12 34": false, "1234 \n": true, "\t1234": true} {
		if look, err := LookAt(pinIn(t, content), []byte("key")); err != nil || look.Blank != want {
			t.Errorf("%q: %+v, %v", content, look, err)
		}
	}
}

func TestByteOrderMark(t *testing.T) {
	t.Parallel()
	if _, _, err := Read(pinIn(t, "\xef\xbb\xbf1234\n").Path, Rules{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

// Some modules read a PIN up to a zero byte, whatever length they are given.
func TestZerosFollowThePIN(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"1234\n", "1234\r\n", "1234", string(bytes.Repeat([]byte("x"), MaxLength)) + "\n"} {
		pin, _, err := Read(pinIn(t, content).Path, Rules{})
		if err != nil {
			t.Fatal(err)
		}
		rest := pin.Bytes()[len(pin.Bytes()):cap(pin.Bytes())]
		if len(rest) == 0 || len(bytes.Trim(rest, "\x00")) != 0 {
			t.Errorf("%.8q: %q follows the PIN", content, rest)
		}
	}
}

func TestEmptyPIN(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "\n"} {
		path := filepath.Join(t.TempDir(), "pin")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Read(path, Rules{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", content, err)
		}
		file, err := Stat(path, Rules{Empty: true})
		if err != nil {
			t.Fatal(err)
		}
		pin, err := ReadState(file)
		if err != nil || len(pin.Bytes()) != 0 || pin.Bytes() == nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// Stat finds what can be found without reading the file.
func TestStatJudgesTheSize(t *testing.T) {
	t.Parallel()
	for size, want := range map[int]error{0: ErrMalformed, 1: nil, MaxLength + 2: nil, MaxLength + 3: ErrMalformed} {
		path := filepath.Join(t.TempDir(), "pin")
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Stat(path, Rules{}); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
