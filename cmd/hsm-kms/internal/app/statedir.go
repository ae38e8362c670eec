package app

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/hsm/modulefile"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// preflight checks what a restart cannot cure before anything is loaded: module files, PIN files, stateDir.
func preflight(cfg *config.Config) error {
	if err := CheckFiles(cfg); err != nil {
		return err
	}
	return PrepareStateDir(cfg)
}

// CheckFiles checks the module and PIN files of a ring. No module is loaded before that: who can replace one has the PIN.
func CheckFiles(cfg *config.Config) error {
	for _, t := range cfg.Tokens {
		if _, err := modulefile.Check(t.Module, cfg.AllowUnsafeModulePath); err != nil {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
		if t.Login != config.LoginPIN {
			continue
		}
		if _, err := pinfile.Stat(t.PINFile, pinRules(t)); err != nil && !errors.Is(err, pinfile.ErrChanging) {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
	}
	return nil
}

// PrepareStateDir makes the folder if it is missing. Another user who could write there, or put another folder in its place,
// could have a refused PIN tried again. A command that root runs works in a folder of the user that the plugin runs as.
func PrepareStateDir(cfg *config.Config) error {
	dir := cfg.StateDir
	if _, err := ownedfile.MakeFolder(dir, 0o700); err != nil {
		return hint.Wrap(fmt.Errorf("making stateDir: %w", err), cmp.Or(hint.Of(err), "make "+dir+" by hand for the user that runs the plugin, or set stateDir"))
	}
	owner, err := ownedfile.FolderOwner(dir)
	if err != nil {
		return fmt.Errorf("checking stateDir: %w", err)
	}
	var trusted []uint32
	if os.Geteuid() == 0 {
		trusted = append(trusted, owner)
	}
	openings, _, err := ownedfile.Others(dir, trusted...)
	if err != nil {
		return fmt.Errorf("checking stateDir: %w", err)
	}
	if cfg.AllowPodVolumes {
		openings = ownedfile.WithoutVolumes(openings)
	}
	if len(openings) > 0 {
		o := openings[0]
		advice := fmt.Sprintf("chmod 0700 %s, and let the plugin's user own it", dir)
		if o.Above {
			advice = o.Fix + ", or set stateDir to a folder below /var/lib"
		}
		return hint.Wrap(fmt.Errorf("checking stateDir: %s", o.What), advice)
	}
	if err := ownedfile.MayWrite(dir); err != nil {
		return hint.Wrap(fmt.Errorf("checking stateDir: %w", err), cmp.Or(hint.Of(err), "let the user that runs hsm-kms write to "+dir))
	}
	return nil
}
