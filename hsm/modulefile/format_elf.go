//go:build !darwin

package modulefile

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"runtime"
)

// target is what an ELF file says about the processor it is for.
type target struct {
	machine elf.Machine
	class   elf.Class
	data    elf.Data
}

// targetOf returns what goarch loads, and false for one that we know nothing of.
func targetOf(goarch string) (target, bool) {
	t, ok := map[string]target{
		"386":     {elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB},
		"amd64":   {elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"arm":     {elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB},
		"arm64":   {elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"loong64": {elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"ppc64le": {elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"riscv64": {elf.EM_RISCV, elf.ELFCLASS64, elf.ELFDATA2LSB},
		"s390x":   {elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB},
	}[goarch]
	return t, ok
}

// String uses the names that uname -m and file(1) use.
func (t target) String() string {
	name, ok := map[target]string{
		{elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB}:       "x86 (32 bit)",
		{elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB}:    "x86-64",
		{elf.EM_X86_64, elf.ELFCLASS32, elf.ELFDATA2LSB}:    "x32",
		{elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB}:       "arm (32 bit)",
		{elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB}:   "aarch64",
		{elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB}: "loongarch64",
		{elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB}:     "ppc64le",
		{elf.EM_RISCV, elf.ELFCLASS64, elf.ELFDATA2LSB}:     "riscv64",
		{elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB}:      "s390x",
	}[t]
	if ok {
		return name
	}
	return fmt.Sprintf("%s (%s, %s)", t.machine, t.class, t.data)
}

// checkFormat reports whether file is a shared library that this process could load.
func checkFormat(file *os.File) error {
	return checkELF(file, runtime.GOARCH)
}

func checkELF(file *os.File, goarch string) error {
	lib, err := elf.NewFile(file)
	if err != nil {
		return fmt.Errorf("it is not an ELF file: %w", err)
	}
	if lib.Type != elf.ET_DYN {
		return errors.New("it is an ELF file, but not a shared library")
	}
	got := target{lib.Machine, lib.Class, lib.Data}
	if want, ok := targetOf(goarch); ok && got != want {
		return fmt.Errorf("it is built for %s, this is %s", got, want)
	}
	return nil
}
