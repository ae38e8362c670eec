package faultp11

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// Options are what an instance can be told when it is made. The zero value is fine.
type Options struct {
	// SoftHSMConf is set as SOFTHSM2_CONF around the real module's C_Initialize, so that several instances in one
	// process each have a token folder of their own. Empty: the environment is left alone.
	SoftHSMConf string
	// PINPad is the file with the PIN that is entered at the pad of a token with the trait PINPad.
	PINPad string
	// AllowBusyFinalize stops New from failing the test when C_Finalize was called under a call.
	AllowBusyFinalize bool
}

// Module is one instance: a copy of the faulty module, a copy of the real one behind it, and their control file. Two
// Modules are as independent as two vendors' modules, also in one process.
type Module struct {
	*Control
	dir string
}

// New lays out an instance in front of the module file underlying, in a folder that goes with the test. At the end of
// the test it clears all faults, which frees calls that still hang, and fails the test if C_Finalize was called while
// a call was in flight.
func New(tb testing.TB, underlying string, o Options) *Module {
	tb.Helper()
	m, err := Install(tb.TempDir(), underlying, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		m.Clear()
		if n := m.FinalizedWhileBusy(); n > 0 && !o.AllowBusyFinalize {
			tb.Errorf("C_Finalize was called %d times while calls were in flight: real modules crash on that", n)
		}
	})
	return m
}

// Install lays out an instance in dir, which exists and holds none yet, for programs that are not tests. Everything in
// dir belongs to it; any process that may read and write there can load Path.
func Install(dir, underlying string, o Options) (*Module, error) {
	faulty, err := build()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("installing the faulty module: %w", err)
	}
	m := &Module{dir: dir}
	// A copy of each: the dynamic linker knows a library by its inode, and the same one is loaded only once.
	behind := filepath.Join(dir, "real.so")
	if err := copyFile(behind, underlying); err != nil {
		return nil, err
	}
	if err := copyFile(m.Path(), faulty); err != nil {
		return nil, err
	}
	sidecar := fmt.Sprintf("module=%s\ncontrol=%s\n", behind, m.ControlPath())
	if o.SoftHSMConf != "" {
		sidecar += fmt.Sprintf("softhsm2_conf=%s\n", o.SoftHSMConf)
	}
	if o.PINPad != "" {
		sidecar += fmt.Sprintf("pinpad=%s\n", o.PINPad)
	}
	if err := os.WriteFile(m.Path()+".conf", []byte(sidecar), 0o600); err != nil {
		return nil, fmt.Errorf("installing the faulty module: %w", err)
	}
	m.Control, err = Create(m.ControlPath())
	return m, err
}

// Path is the module file to load.
func (m *Module) Path() string { return filepath.Join(m.dir, "faultp11.so") }

// ControlPath is the control file, for Open in another process.
func (m *Module) ControlPath() string { return filepath.Join(m.dir, "control") }

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copying a module: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return fmt.Errorf("copying a module: %w", err)
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return nil
}
