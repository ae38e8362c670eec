package hold

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// maxLedger bounds what is read of the ledger, in bytes: a span has at most 60.
const maxLedger = 64 << 10

func ledgerPath(stateDir string) string { return filepath.Join(holdfile.Folder(stateDir), "used.json") }

// loadLedger reads the ledger. No file is one in which nothing is used.
func loadLedger(stateDir string) (ledgerState, error) {
	path := ledgerPath(stateDir)
	text, found, err := atomicfile.ReadState(path, maxLedger)
	if err != nil {
		return ledgerState{}, fmt.Errorf("reading the time on hold: %w", err)
	}
	if !found {
		return ledgerState{}, nil
	}
	state, err := parseLedger(text)
	if err != nil {
		return ledgerState{}, fmt.Errorf("reading the time on hold: %s: %w", path, err)
	}
	return state, nil
}

func parseLedger(text []byte) (ledgerState, error) {
	var state ledgerState
	if err := atomicfile.DecodeState(text, &state); err != nil {
		return ledgerState{}, err
	}
	switch {
	case state.Version != 1:
		return ledgerState{}, fmt.Errorf("version %d is unknown", state.Version)
	case state.Boot < 0 || state.Elapsed < 0 || state.Elapsed > maxElapsed || state.Advance < 0 || state.Advance > time.Hour || len(state.Spans) > maxSpans+2:
		return ledgerState{}, errors.New("its times are none")
	}
	for _, s := range state.Spans {
		if s.To < s.From || s.To > state.Elapsed || s.From < -maxElapsed {
			return ledgerState{}, errors.New("its times on hold are none")
		}
	}
	return state, nil
}

// maxElapsed keeps sums of times from overflowing.
const maxElapsed = 100 * 365 * 24 * time.Hour

func saveLedger(stateDir string, state ledgerState) error {
	if err := holdfile.MakeFolder(stateDir); err != nil {
		return err
	}
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return atomicfile.WriteState(ledgerPath(stateDir), append(text, '\n'))
}
