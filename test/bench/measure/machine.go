package measure

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// Describe says on what is measured and what: the machine, and what each command says of its version in its first line. A table
// begins with it, so that figures can be traced to a commit.
func Describe(ctx context.Context, commands ...[]string) ([]string, error) {
	lines := []string{fmt.Sprintf("machine: %s, %s, %s, load %s at the start", Processor(), firstOf("/proc/sys/kernel/osrelease"), runtime.Version(), LoadNow())}
	for _, command := range commands {
		line, err := FirstLine(ctx, command[0], command[1:]...)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// FirstLine runs a program that soon ends and gives the first line of what it printed.
func FirstLine(ctx context.Context, path string, args ...string) (string, error) {
	out, err := proc.Command(ctx, path, args...).Output()
	if err != nil {
		return "", fmt.Errorf("running %s %s: %w", path, strings.Join(args, " "), err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// LoadNow is the load average over one minute.
func LoadNow() string {
	load, _, _ := strings.Cut(firstOf("/proc/loadavg"), " ")
	return load
}

// firstOf is the first line of a file; "?" when there is none.
func firstOf(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
