// Package duration reads lengths of time for flags and the configuration, with days: 90d, 1d12h, and all that
// time.ParseDuration reads. A day has 24 hours. It depends on nothing of this program, and is safe for concurrent use.
package duration

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

var errNone = errors.New("is not a length of time: write 30s, 15m, 12h, 90d or 1d12h")

// Parse reads a length of time. Days come first and are whole.
func Parse(text string) (time.Duration, error) {
	days, rest, found := strings.Cut(text, "d")
	if !found {
		rest, days = text, "0"
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil || found && strings.HasPrefix(rest, "-") {
		return 0, errNone
	}
	var d time.Duration
	if rest != "" || !found {
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, errNone
		}
	}
	return time.Duration(n)*24*time.Hour + d, nil
}

// String leaves out the units that are zero: 1h, where time.Duration says 1h0m0s.
func String(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Var adds a flag.
func Var(flags *pflag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	flags.Var((*flag)(p), name, usage)
}

type flag time.Duration

// Set implements pflag.Value.
func (f *flag) Set(text string) error {
	d, err := Parse(text)
	if err == nil {
		*f = flag(d)
	}
	return err
}

// String implements pflag.Value.
func (f *flag) String() string { return String(time.Duration(*f)) }

// Type implements pflag.Value.
func (f *flag) Type() string { return "duration" }
