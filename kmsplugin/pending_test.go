package kmsplugin

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

func TestPendingTrailer(t *testing.T) {
	t.Parallel()
	at := time.Date(2030, 1, 2, 3, 4, 5, 6e6, time.UTC)
	ckaID, err := envelope.NewCKAID(at)
	if err != nil {
		t.Fatal(err)
	}
	id := envelope.KeyID{Ring: "r", Version: string(ckaID), Fingerprint: [8]byte{1}}
	for _, want := range []health.Pending{
		{Key: id, Activates: at, Ready: true},
		{Key: id, Activates: at},
		{Key: id, Activates: at, Deferred: true},
	} {
		value := want.Key.String() + " " + want.Activates.Format(time.RFC3339Nano) + " " + readiness(want)
		got := pendingIn(metadata.Pairs(pendingTrailer, value))
		if len(got) != 1 || got[0] != want {
			t.Errorf("%q came back as %+v", value, got)
		}
	}
	for _, until := range []time.Time{{}, at.Add(time.Hour)} {
		want := health.Pending{Key: id, Activates: at, Deferred: true, Why: "hsm-b does not hold it; hsm-c is out of reach", Until: until}
		trailer := trailerOf([]health.Pending{{Key: id, Activates: at}, want}, nil)
		got := pendingIn(trailer)
		if len(got) != 2 || got[1] != want {
			t.Errorf("%v came back as %+v", trailer, got)
		}
	}
	for _, odd := range []string{"", id.String(), id.String() + " ", "r/x/0000000000000000 - because"} {
		trailer := trailerOf([]health.Pending{{Key: id, Activates: at}}, nil)
		trailer.Set(deferredTrailer, odd)
		if got := pendingIn(trailer); len(got) != 1 || got[0] != (health.Pending{Key: id, Activates: at}) {
			t.Errorf("%q was taken for %+v", odd, got)
		}
	}
	for _, bad := range []string{"", "a b", "a b c d", id.String() + " yesterday ready", strings.Repeat("x ", 3)} {
		if got := pendingIn(metadata.Pairs(pendingTrailer, bad)); got != nil {
			t.Errorf("%q was taken for %+v", bad, got)
		}
	}
}

func TestRetainedTrailer(t *testing.T) {
	t.Parallel()
	var retained []envelope.KeyID
	for i := range maxRetainedTold + 1 {
		ckaID, err := envelope.NewCKAID(time.Unix(int64(i), 0))
		if err != nil {
			t.Fatal(err)
		}
		retained = append(retained, envelope.KeyID{Ring: "r", Version: string(ckaID), Fingerprint: [8]byte{byte(i)}})
	}
	trailer := trailerOf(nil, retained)
	trailer.Append(retainedTrailer, "no key_id")
	if got := retainedIn(trailer); !slices.Equal(got, retained[:maxRetainedTold]) {
		t.Errorf("%v came back as %v", retained, got)
	}
}
