package holdfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
)

const keyID = "kube-secrets/x6b31/0123456789abcdef"

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	entries := []Entry{{keyID, []byte{1, 1, 0}}, {keyID + "/hold", bytes.Repeat([]byte{4}, envelope.MaxEnvelope)}}
	seed, drop := Seed{NewID(), entries}, Drop{NewID()}
	for _, save := range []func() error{
		func() error { return SaveList(dir, List{entries}) }, func() error { return SaveSeed(dir, seed) }, func() error { return SaveDrop(dir, drop) },
	} {
		if err := save(); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := LoadList(dir); err != nil || !reflect.DeepEqual(list.Entries, entries) {
		t.Errorf("list: %v, %v", list, err)
	}
	if got, found, err := LoadSeed(dir); err != nil || !found || !reflect.DeepEqual(got, seed) {
		t.Errorf("seed: %v, %t, %v", got, found, err)
	}
	if got, found, err := LoadDrop(dir); err != nil || !found || got != drop {
		t.Errorf("drop: %v, %t, %v", got, found, err)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, listName: 0o600, seedName: 0o600, dropName: 0o600} {
		info, err := os.Stat(filepath.Join(Folder(dir), name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v", name, info, err)
		}
	}
}

func TestNothingThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if list, err := LoadList(dir); err != nil || len(list.Entries) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, found, err := LoadSeed(dir); found || err != nil {
		t.Errorf("seed: %t, %v", found, err)
	}
	if _, found, err := LoadDrop(dir); found || err != nil {
		t.Errorf("drop: %t, %v", found, err)
	}
	for _, remove := range []func(string) error{RemoveList, RemoveSeed, RemoveDrop} {
		if err := remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// The largest list that can be written can be read again.
func TestLargestList(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	dir := t.TempDir()
	longest := strings.Repeat("r", 63) + "/x" + strings.Repeat("6b", 64) + "/0123456789abcdef/hold"
	entries := make([]Entry, MaxEntries)
	for i := range entries {
		entries[i] = Entry{longest, bytes.Repeat([]byte{0xff}, envelope.MaxEnvelope)}
	}
	if err := SaveList(dir, List{entries}); err != nil {
		t.Fatal(err)
	}
	if list, err := LoadList(dir); err != nil || len(list.Entries) != MaxEntries {
		t.Errorf("%d entries, %v", len(list.Entries), err)
	}
	if err := SaveList(dir, List{append(entries, entries[0])}); err == nil {
		t.Error("one entry too many was written")
	}
}

func TestFilesThatCannotBeBelieved(t *testing.T) {
	t.Parallel()
	entry := fmt.Sprintf(`{"keyID":%q,"envelope":"AQE="}`, keyID)
	for name, text := range map[string]string{
		"empty":           "",
		"no JSON":         "{",
		"two":             `{"version":1}{"version":1}`,
		"unknown field":   `{"version":1,"more":1}`,
		"other version":   `{"version":2,"entries":[` + entry + `]}`,
		"no version":      `{"entries":[` + entry + `]}`,
		"key_id":          `{"version":1,"entries":[{"keyID":"x","envelope":"AQE="}]}`,
		"key_id twice":    `{"version":1,"entries":[{"keyID":"` + keyID + `/hold/hold","envelope":"AQE="}]}`,
		"no envelope":     `{"version":1,"entries":[{"keyID":"` + keyID + `"}]}`,
		"large envelope":  `{"version":1,"entries":[{"keyID":"` + keyID + `","envelope":"` + strings.Repeat("AAAA", envelope.MaxEnvelope/3+1) + `"}]}`,
		"id in the list":  `{"version":1,"id":"00112233445566778899aabbccddeeff"}`,
		"too many":        `{"version":1,"entries":[` + strings.Repeat(entry+",", MaxEntries) + entry + `]}`,
		"larger than any": `{"version":1,"entries":[` + strings.Repeat(" ", maxFile) + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			put(t, dir, listName, text)
			if list, err := LoadList(dir); err == nil || !strings.Contains(err.Error(), listName) || len(list.Entries) != 0 {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
	for _, id := range []string{"", "zz", "0011", strings.Repeat("0", 34)} {
		dir := t.TempDir()
		put(t, dir, dropName, `{"version":1,"id":"`+id+`"}`)
		if _, found, err := LoadDrop(dir); err == nil || !found {
			t.Errorf("id %q: %t, %v", id, found, err)
		}
	}
}

// Neither a link nor a FIFO is read.
func TestNoRegularFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, listName, `{"version":1}`)
	if err := os.Symlink(listName, filepath.Join(Folder(dir), seedName)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadSeed(dir); err == nil {
		t.Error("a link was followed")
	}
	if err := unix.Mkfifo(filepath.Join(Folder(dir), dropName), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, found, err := LoadDrop(dir); err == nil || !found {
		t.Errorf("a FIFO was read: %t, %v", found, err)
	}
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := MakeFolder(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(Folder(dir), name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
