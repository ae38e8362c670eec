package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// kept are the first clean reports of old keys: files that hsm-kms keys retire takes as --evidence. Nothing in them is secret.
type kept struct {
	dir   string
	files map[string]*gate.File // by key_id
}

const (
	keptPrefix = "clean-"
	keptSuffix = ".json"
)

// openKept makes the folder if need be, and reads what is there. A file that is no evidence is as if it were not there.
func openKept(dir string) (kept, error) {
	k := kept{dir: dir, files: map[string]*gate.File{}}
	if _, err := ownedfile.MakeFolder(dir, 0o755); err != nil {
		return k, hint.Wrap(fmt.Errorf("making --state-dir: %w", err), "make "+dir+" by hand for the user that runs hsm-kms operate")
	}
	openings, _, err := ownedfile.Others(dir)
	switch {
	case err != nil:
		return k, fmt.Errorf("checking --state-dir: %w", err)
	case len(openings) > 0:
		return k, hint.Wrap(fmt.Errorf("checking --state-dir: %s", openings[0].What), "name a folder that only the user that runs hsm-kms operate may change, such as "+DefaultStateDir)
	}
	if err := ownedfile.MayWrite(dir); err != nil {
		return k, hint.Wrap(fmt.Errorf("checking --state-dir: %w", err), "let the user that runs hsm-kms operate write to "+dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return k, fmt.Errorf("reading --state-dir: %w", err)
	}
	for _, entry := range entries {
		name, found := strings.CutPrefix(entry.Name(), keptPrefix)
		name, isJSON := strings.CutSuffix(name, keptSuffix)
		key := strings.ReplaceAll(name, "_", "/")
		if _, err := envelope.ParseKeyID(key); !found || !isJSON || err != nil {
			continue
		}
		if file, err := gate.Load(filepath.Join(dir, entry.Name())); err == nil {
			k.files[key] = file
		}
	}
	return k, nil
}

// DefaultStateDir is where the command keeps its reports.
const DefaultStateDir = "/var/lib/hsm-kms-operate"

// path is the file of a key. A key_id has no "_".
func (k *kept) path(key string) string {
	return filepath.Join(k.dir, keptPrefix+strings.ReplaceAll(key, "/", "_")+keptSuffix)
}

// times are when each report began.
func (k *kept) times() map[string]time.Time {
	times := make(map[string]time.Time, len(k.files))
	for key, file := range k.files {
		times[key] = file.Time
	}
	return times
}

// keep writes a report, and reads it again as hsm-kms keys retire will.
func (k *kept) keep(key string, report []byte) error {
	if err := atomicfile.Replace(k.path(key), report, 0o644); err != nil {
		return err
	}
	file, err := gate.Load(k.path(key))
	if err != nil {
		return err
	}
	k.files[key] = file
	return nil
}

func (k *kept) forget(keys []string) error {
	var errs []error
	for _, key := range keys {
		delete(k.files, key)
		if err := os.Remove(k.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
