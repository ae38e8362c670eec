package kmsplugin

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

func TestHoldIsTold(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 11, 30, 10, 0, 0, 0, time.UTC)
	state := holdfile.State{
		Limit: 24 * time.Hour, Armed: true, Held: 199, Listed: 200, Missing: []string{"kube/hk1/0011"}, Holding: true, Since: since,
		Until: since.Add(24 * time.Hour), Used: time.Hour, Seed: "01", Added: 2, Left: 3, Dropped: "02", Full: true, Why: "1 DEK is not held",
	}
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	if got := holdIn(metadata.Pairs(holdTrailer, string(text))); got == nil || !reflect.DeepEqual(*got, state) {
		t.Errorf("got %+v, want %+v", got, state)
	}
	newer := strings.Replace(string(text), "{", `{"unknown":1,`, 1)
	if got := holdIn(metadata.Pairs(holdTrailer, newer)); got == nil || !reflect.DeepEqual(*got, state) {
		t.Errorf("of a newer plugin: got %+v, want %+v", got, state)
	}
}

func TestHoldThatIsNotTold(t *testing.T) {
	t.Parallel()
	for name, trailer := range map[string]metadata.MD{
		"none":     {},
		"no JSON":  metadata.Pairs(holdTrailer, "{"),
		"no limit": metadata.Pairs(holdTrailer, `{"armed":true}`),
		"two":      metadata.Pairs(holdTrailer, `{"limit":1}`, holdTrailer, `{"limit":1}`),
		"too long": metadata.Pairs(holdTrailer, `{"limit":1,"why":"`+strings.Repeat("x", maxHoldTrailer)+`"}`),
	} {
		if got := holdIn(trailer); got != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
