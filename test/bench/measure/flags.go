package measure

import (
	"flag"
	"fmt"
	"path/filepath"
)

// Flags are those that all benchmark programs have.
type Flags struct {
	Bin string // absolute after Prepare
	Out string
}

// Register defines the flags.
func (f *Flags) Register() {
	flag.StringVar(&f.Bin, "bin", "bin/hsm-kms", "the `program` that is measured")
	flag.StringVar(&f.Out, "out", "bin/bench-results", "the `folder` that the results go to")
}

// Prepare makes the results' folder; programs that are started run in other folders than this one.
func (f *Flags) Prepare() (err error) {
	if f.Bin, err = filepath.Abs(f.Bin); err != nil {
		return fmt.Errorf("finding the program: %w", err)
	}
	return makeFolder(f.Out)
}
