package duration

import (
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"0s": 0, "500ms": 500 * time.Millisecond, "1h30m": 90 * time.Minute, "90d": 2160 * time.Hour, "1d12h": 36 * time.Hour, "0d": 0,
		"65535d": 65535 * 24 * time.Hour, "-1h": -time.Hour, "1d0s": 24 * time.Hour,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "1", "1d1", "-1d", "+1d", "1.5d", "1d-1h", "1h1d", "1d1d", "65536d", "1 d", "1D", "1w", "200000000h"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestVar(t *testing.T) {
	t.Parallel()
	var d time.Duration
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	Var(flags, &d, "for", 15*time.Minute, "")
	if def := flags.Lookup("for").DefValue; d != 15*time.Minute || def != "15m" {
		t.Errorf("%s, %q", d, def)
	}
	if err := flags.Parse([]string{"--for", "2d"}); err != nil || d != 48*time.Hour {
		t.Errorf("%s, %v", d, err)
	}
	if err := flags.Parse([]string{"--for", "2"}); err == nil {
		t.Error("a number without a unit was taken")
	}
}
