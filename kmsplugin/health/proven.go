package health

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
)

// ProvenFile is the name of the file in stateDir that holds the last proven key_id of the ring that is written under. Nothing
// in it is secret.
const ProvenFile = "proven.json"

// maxProvenFile bounds what is read of it, in bytes; what we write has about 200.
const maxProvenFile = 4096

// Proven is the key that was sealed and opened with last, and when.
type Proven struct {
	Key envelope.KeyID // zero: none
	At  time.Time
}

type provenJSON struct {
	KeyID    string    `json:"keyID"`
	ProvenAt time.Time `json:"provenAt"`
}

// LoadProven reads what an earlier process left in stateDir for the ring. Its Key is RingConfig.Floor, the whole is
// Config.Proven. No file for the ring is the zero Proven; a file that cannot be believed is that too, with
// an error that is to be logged and not to stop anything: the next good probe writes the file again.
func LoadProven(stateDir, ring string) (Proven, error) {
	for _, path := range []string{filepath.Join(stateDir, ProvenFile), asidePath(stateDir, ring)} {
		proven, err := readProven(path)
		if err != nil || proven.Key.Ring == ring {
			return proven, err
		}
	}
	return Proven{}, nil
}

// LastProven is what was left last, for whichever ring. The ring that a plugin of this stateDir wrote under last is that one.
func LastProven(stateDir string) (Proven, error) {
	return readProven(filepath.Join(stateDir, ProvenFile))
}

// asidePath is where the last proven key of a ring is kept when another ring is written under: the way back may need it.
func asidePath(stateDir, ring string) string {
	return filepath.Join(stateDir, "proven-"+ring+".json")
}

// readProven is zero where there is no file.
func readProven(path string) (Proven, error) {
	text, found, err := atomicfile.ReadState(path, maxProvenFile)
	if err != nil {
		return Proven{}, fmt.Errorf("reading the last proven key_id: %w", err)
	}
	if !found {
		return Proven{}, nil
	}
	proven, err := parseProven(text)
	if err != nil {
		return Proven{}, fmt.Errorf("reading the last proven key_id from %s: %w", path, err)
	}
	return proven, nil
}

func parseProven(text []byte) (Proven, error) {
	var stored provenJSON
	if err := atomicfile.DecodeState(text, &stored); err != nil {
		return Proven{}, err
	}
	id, err := envelope.ParseKeyID(stored.KeyID)
	if err != nil {
		return Proven{}, err
	}
	return Proven{Key: id, At: stored.ProvenAt}, nil
}

// saveProven replaces the file in one step: a reader, after a power loss too, finds the old or the new one. What the file has
// of another ring is set aside first. One that cannot be believed is not.
func saveProven(stateDir string, proven Proven) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keeping the last proven key_id: %w", err)
		}
	}()
	path := filepath.Join(stateDir, ProvenFile)
	if before, readErr := readProven(path); readErr == nil && !before.Key.IsZero() && before.Key.Ring != proven.Key.Ring {
		if err := writeProven(asidePath(stateDir, before.Key.Ring), before); err != nil {
			return err
		}
	}
	return writeProven(path, proven)
}

func writeProven(path string, proven Proven) error {
	text, err := json.Marshal(provenJSON{KeyID: proven.Key.String(), ProvenAt: proven.At.UTC().Truncate(time.Millisecond)})
	if err != nil {
		return err
	}
	return atomicfile.WriteState(path, append(text, '\n'))
}
