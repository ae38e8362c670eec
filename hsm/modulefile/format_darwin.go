package modulefile

import (
	"debug/macho"
	"errors"
	"fmt"
	"os"
	"runtime"
)

// checkFormat reports whether file is a Mach-O library, thin or fat, with a part for this processor.
func checkFormat(file *os.File) error {
	want, ok := map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64}[runtime.GOARCH]
	if !ok {
		return nil
	}
	if fat, err := macho.NewFatFile(file); err == nil {
		for _, arch := range fat.Arches {
			if arch.Cpu == want {
				return checkType(arch.Type)
			}
		}
		return fmt.Errorf("none of its %d parts is built for %s", len(fat.Arches), want)
	}
	thin, err := macho.NewFile(file)
	if err != nil {
		return fmt.Errorf("it is not a Mach-O file: %w", err)
	}
	if thin.Cpu != want {
		return fmt.Errorf("it is built for %s, this is %s", thin.Cpu, want)
	}
	return checkType(thin.Type)
}

func checkType(t macho.Type) error {
	if t != macho.TypeDylib && t != macho.TypeBundle {
		return errors.New("it is a Mach-O file, but not a library")
	}
	return nil
}
