// Package holdfile reads and writes the files of the outage hold in stateDir, and has what the plugin says of its hold. The plugin
// and the commands share it.
//
//	hold/list.json  the wrapped DEKs that the plugin opened or sealed; the plugin alone writes it
//	hold/seed.json  wrapped DEKs that `hold seed` found in etcd; the plugin takes them up and removes the file
//	hold/drop.json  the request of `hold drop`; the plugin removes the file when it is done
//
// Nothing in them is secret: a wrapped DEK stands in etcd beside what it encrypts. What is read is bounded, and refused as a whole
// if any part of it could not have been written here. Files are replaced in one step.
//
// It depends on envelope for key_ids and sizes, and on atomicfile, hint and ownedfile. Functions keep nothing, and may be called from any
// number of goroutines and processes; of two that write one file, the last wins.
package holdfile

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// MaxEntries bounds the list, and with it every file.
const MaxEntries = 10_000

const (
	version = 1
	idSize  = 16 // bytes
	// maxEntry bounds the JSON of one entry in bytes: key_id, envelope in base64, and the names of the fields.
	maxEntry = envelope.MaxKeyID + envelope.MaxEnvelope*3/2 + 64
	maxFile  = MaxEntries*maxEntry + 256
)

const (
	listName = "list.json"
	seedName = "seed.json"
	dropName = "drop.json"
)

// Entry is a wrapped DEK as the API server presents it to Decrypt.
type Entry struct {
	KeyID    string `json:"keyID"` // may end in /hold
	Envelope []byte `json:"envelope"`
}

// List is what the plugin is to hold, in the order in which it came.
type List struct{ Entries []Entry }

// Seed is a list that a command hands to the plugin. ID names this hand-over.
type Seed struct {
	ID      string
	Entries []Entry
}

// Drop is the request to wipe the hold. ID names it.
type Drop struct{ ID string }

// content is the JSON of each file.
type content struct {
	Version int     `json:"version"`
	ID      string  `json:"id,omitempty"`
	Entries []Entry `json:"entries,omitempty"`
}

// NewID returns a random ID.
func NewID() string {
	id := make([]byte, idSize)
	_, _ = rand.Read(id) // it never fails
	return hex.EncodeToString(id)
}

// Folder is where the files are.
func Folder(stateDir string) string { return filepath.Join(stateDir, "hold") }

// MakeFolder makes the folder if it is missing, for the owner of stateDir alone.
func MakeFolder(stateDir string) error {
	folder := Folder(stateDir)
	if _, err := ownedfile.MakeFolder(folder, 0o700); err != nil {
		return hint.Wrap(fmt.Errorf("making the folder of the hold: %w", err), cmp.Or(hint.Of(err), "let the user that runs the plugin own "+stateDir))
	}
	return nil
}

// LoadList reads the list. No file is an empty list. A file that cannot be believed is an error.
func LoadList(stateDir string) (List, error) {
	c, _, err := load(stateDir, listName, false)
	return List{c.Entries}, err
}

// SaveList replaces the list.
func SaveList(stateDir string, list List) error {
	return save(stateDir, listName, content{Entries: list.Entries})
}

// RemoveList removes the list; that there is none is no error.
func RemoveList(stateDir string) error { return remove(stateDir, listName) }

// LoadSeed reads what a command handed over, and reports whether there is anything.
func LoadSeed(stateDir string) (Seed, bool, error) {
	c, found, err := load(stateDir, seedName, true)
	return Seed{c.ID, c.Entries}, found, err
}

// SaveSeed hands a list over. It replaces one that was not taken up yet.
func SaveSeed(stateDir string, seed Seed) error {
	return save(stateDir, seedName, content{ID: seed.ID, Entries: seed.Entries})
}

// RemoveSeed removes the file that was handed over; that there is none is no error.
func RemoveSeed(stateDir string) error { return remove(stateDir, seedName) }

// LoadDrop reads the request to wipe the hold, and reports whether there is one. With an error there is one that cannot be
// understood.
func LoadDrop(stateDir string) (Drop, bool, error) {
	c, found, err := load(stateDir, dropName, true)
	return Drop{c.ID}, found, err
}

// SaveDrop asks for the hold to be wiped.
func SaveDrop(stateDir string, drop Drop) error {
	return save(stateDir, dropName, content{ID: drop.ID})
}

// RemoveDrop removes the request; that there is none is no error.
func RemoveDrop(stateDir string) error { return remove(stateDir, dropName) }

// load reads a file. found reports whether there is one, also with an error.
func load(stateDir, name string, hasID bool) (c content, found bool, err error) {
	path := filepath.Join(Folder(stateDir), name)
	text, found, err := atomicfile.ReadState(path, maxFile)
	if err == nil && found {
		if c, err = parse(text, hasID); err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
	}
	if err != nil {
		return content{}, found, fmt.Errorf("reading a file of the hold: %w", err)
	}
	return c, found, nil
}

func parse(text []byte, hasID bool) (c content, err error) {
	if err := atomicfile.DecodeState(text, &c); err != nil {
		return content{}, err
	}
	return c, c.check(hasID)
}

func (c *content) check(hasID bool) error {
	id, err := hex.DecodeString(c.ID)
	switch {
	case c.Version != version:
		return fmt.Errorf("version %d is unknown", c.Version)
	case hasID && (err != nil || len(id) != idSize), !hasID && c.ID != "":
		return errors.New("its id is not one")
	case len(c.Entries) > MaxEntries:
		return fmt.Errorf("%d entries, and %d are possible", len(c.Entries), MaxEntries)
	}
	for i, e := range c.Entries {
		if err := e.Check(); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
	}
	return nil
}

// Check reports why the entry cannot be in a list. It does not find out whether the DEK can be opened.
func (e Entry) Check() error {
	if _, _, err := envelope.ParseUsedKeyID(e.KeyID); err != nil {
		return err
	}
	if n := len(e.Envelope); n == 0 || n > envelope.MaxEnvelope {
		return fmt.Errorf("an envelope of %d bytes, 1 to %d are possible", n, envelope.MaxEnvelope)
	}
	return nil
}

func save(stateDir, name string, c content) error {
	c.Version = version
	if err := c.check(name != listName); err != nil {
		return fmt.Errorf("writing a file of the hold: %s: %w", name, err)
	}
	if err := MakeFolder(stateDir); err != nil {
		return err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return atomicfile.WriteState(filepath.Join(Folder(stateDir), name), append(text, '\n'))
}

func remove(stateDir, name string) error {
	path := filepath.Join(Folder(stateDir), name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a file of the hold: %w", ownedfile.Explain(path, err))
	}
	return nil
}
