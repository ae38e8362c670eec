package hsm

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A token that is lost and found every few seconds for an hour is told of a few times, each time as a whole; one that is
// lost now and then is told of each time.
func TestStoriesAreFewAndWhole(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		every       time.Duration
		most, least int
	}{
		"every 5 s":  {5 * time.Second, 12, 6},
		"each hour":  {time.Hour, 24, 24},
		"each 3 min": {3 * time.Minute, 130, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var text bytes.Buffer
				log := slog.New(slog.NewTextHandler(&text, nil))
				s := newLogDeduplicator()
				s.connected(log, 1, 1)
				long := time.Hour
				if tt.every > time.Minute {
					long = 24 * time.Hour
				}
				for begin := time.Now(); time.Since(begin) < long; time.Sleep(tt.every) {
					s.dropped(log, 1, "sessions were cut")
					s.failed(log, fmt.Errorf("opening session: not for %s", time.Since(begin)))
					s.failed(log, fmt.Errorf("opening session: not for %s", time.Since(begin)+time.Millisecond))
					s.connected(log, 2, 1)
				}
				out := text.String()
				dropped, failed, connected := strings.Count(out, "dropped\""), strings.Count(out, "cannot be used"), strings.Count(out, "connected to")-1
				if dropped != failed || dropped != connected || dropped > tt.most || dropped < tt.least {
					t.Errorf("%d dropped, %d failed, %d connected", dropped, failed, connected)
				}
			})
		})
	}
}

// A cause that was not said before is, also when its episode is not logged; and the log does not end with it.
func TestAnotherCauseIsSaid(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	s := newLogDeduplicator()
	for i := range 3 {
		s.dropped(log, uint64(i), "why")
		s.failed(log, fmt.Errorf("cause %d", i))
		s.failed(log, fmt.Errorf("cause %d", i))
		s.connected(log, uint64(i), 1)
	}
	out := text.String()
	if strings.Count(out, "dropped\"") != 1 || strings.Count(out, "cannot be used") != 3 || strings.Count(out, "connected to") != 3 {
		t.Errorf("log:\n%s", out)
	}
	for i := range 100 { // a module whose words never are the same
		s.failed(log, fmt.Errorf("cause %c", 'a'+i))
	}
	if n := strings.Count(text.String(), "cannot be used"); n != maxCauses {
		t.Errorf("%d causes were said", n)
	}
}

func TestTimeless(t *testing.T) {
	t.Parallel()
	for _, tt := range [][2]string{
		{"it has not returned for 3.2s: x", "it has not returned for 850ms: x"},
		{"for 1m0.5s (callTimeout is 2s)", "for 59s (callTimeout is 2s)"},
	} {
		if a, b := timeless(fmt.Errorf("%s", tt[0])), timeless(fmt.Errorf("%s", tt[1])); a != b {
			t.Errorf("%q and %q", a, b)
		}
	}
	for _, tt := range [][2]string{{"C_Login: CKR 0x80000001", "C_Login: CKR 0x80000002"}, {"slot 1", "slot 2"}} {
		if timeless(fmt.Errorf("%s", tt[0])) == timeless(fmt.Errorf("%s", tt[1])) {
			t.Errorf("%q and %q are one", tt[0], tt[1])
		}
	}
}
