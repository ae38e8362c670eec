package holdops

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// fake is a plugin with a hold. At each Status it does what on says with what it finds in its folder.
type fake struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	mu    sync.Mutex
	state *holdfile.State
	err   error
	on    func(*fake)
}

func (f *fake) Status(ctx context.Context, _ *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.on != nil {
		f.on(f)
	}
	if f.err != nil {
		return nil, f.err
	}
	if f.state != nil {
		text, err := json.Marshal(f.state)
		if err != nil {
			return nil, err
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("hsm-kms-hold-bin", string(text))); err != nil {
			return nil, err
		}
	}
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok"}, nil
}

// plugin serves f.
func plugin(t *testing.T, f *fake) Plugin {
	t.Helper()
	p := Plugin{Socket: filepath.Join(t.TempDir(), "s"), StateDir: t.TempDir(), Wait: 10 * time.Second}
	if f == nil {
		return p
	}
	listener, err := net.Listen("unix", p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, f)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

func entries() []holdfile.Entry {
	return []holdfile.Entry{{KeyID: "kube/x01/0123456789abcdef", Envelope: []byte{1}}, {KeyID: "kube/x01/0123456789abcdef/hold", Envelope: []byte{2}}}
}

// takeUp is what the plugin does with a list.
func takeUp(t *testing.T, p *Plugin, held, left int) func(*fake) {
	t.Helper()
	return func(f *fake) {
		seed, found, err := holdfile.LoadSeed(p.StateDir)
		if err != nil {
			t.Error(err)
		}
		if !found {
			return
		}
		f.state.Seed, f.state.Added, f.state.Left = seed.ID, len(seed.Entries)-left, left
		f.state.Listed, f.state.Held = len(seed.Entries)-left, held
		f.state.Armed = f.state.Listed == held
		f.state.Why = map[bool]string{false: "DEKs on the list are not held"}[f.state.Armed]
		if err := holdfile.RemoveSeed(p.StateDir); err != nil {
			t.Error(err)
		}
	}
}

func on() *holdfile.State { return &holdfile.State{Limit: time.Hour, Why: "no DEK is listed"} }

func TestSeed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		held, left int
		wait       time.Duration
		wrong      string
	}{
		"armed": {2, 0, 10 * time.Second, ""},
		"full":  {1, 1, 10 * time.Second, "the list of the hold is full: 1 DEKs did not fit in it"},
		"not":   {1, 0, 600 * time.Millisecond, "the hold is not armed after 600ms: DEKs on the list are not held"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fake{state: on()}
			p := plugin(t, f)
			p.Wait = c.wait
			f.on = takeUp(t, &p, c.held, c.left)
			if err := p.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			done, err := p.Seed(t.Context(), entries())
			if !done.TakenUp || done.State.Added != 2-c.left || done.State.Held != c.held {
				t.Errorf("%+v", done)
			}
			if c.wrong == "" && err != nil || c.wrong != "" && (!app.IsFinding(err) || err.Error() != c.wrong || hint.Of(err) == "") {
				t.Errorf("%v, hint %q", err, hint.Of(err))
			}
		})
	}
}

// A plugin that does not take the list up finds it later.
func TestSeedThatIsNotTakenUp(t *testing.T) {
	t.Parallel()
	f := &fake{state: on()}
	p := plugin(t, f)
	p.Wait = 300 * time.Millisecond
	done, err := p.Seed(t.Context(), entries())
	if !app.IsFinding(err) || done.TakenUp || !strings.Contains(err.Error(), "unknown what the plugin does") {
		t.Errorf("%+v, %v", done, err)
	}
	if seed, found, err := holdfile.LoadSeed(p.StateDir); !found || err != nil || len(seed.Entries) != 2 {
		t.Errorf("%v, %t, %v", seed, found, err)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fake    *fake
		finding bool
		text    string
	}{
		"absent":  {nil, true, "no plugin answers on "},
		"off":     {&fake{}, true, "the plugin has no outage hold"},
		"refuses": {&fake{err: status.Error(codes.PermissionDenied, "no")}, false, "PermissionDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := plugin(t, c.fake).Ready(t.Context())
			if err == nil || app.IsFinding(err) != c.finding || !strings.Contains(err.Error(), c.text) || hint.Of(err) == "" {
				t.Errorf("%v, hint %q", err, hint.Of(err))
			}
		})
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fake    *fake
		outcome Outcome
		text    string
		stays   bool // the request
	}{
		"done":    {&fake{state: on()}, Done, "", false},
		"absent":  {nil, NotDone, "nothing was wiped", true},
		"off":     {&fake{}, Done, "", false},
		"silent":  {&fake{state: on()}, Unknown, "it has not said so", true},
		"refuses": {&fake{err: status.Error(codes.PermissionDenied, "no")}, Unknown, "PermissionDenied", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := plugin(t, c.fake)
			if err := errors.Join(holdfile.SaveList(p.StateDir, holdfile.List{Entries: entries()}), holdfile.SaveSeed(p.StateDir, holdfile.Seed{ID: holdfile.NewID()})); err != nil {
				t.Fatal(err)
			}
			switch name {
			case "done":
				c.fake.on = func(f *fake) { wipe(t, p, f) }
			case "silent", "refuses":
				p.Wait = 300 * time.Millisecond
			}
			outcome, err := p.Drop(t.Context())
			if outcome != c.outcome || (err == nil) != (outcome == Done) {
				t.Errorf("%s, %v", outcome, err)
			}
			if err != nil && (!app.IsFinding(err) || !strings.Contains(err.Error(), c.text) || hint.Of(err) == "") {
				t.Errorf("%v, hint %q", err, hint.Of(err))
			}
			if _, found, _ := holdfile.LoadDrop(p.StateDir); found != c.stays {
				t.Errorf("the request is there: %t", found)
			}
			if list, err := holdfile.LoadList(p.StateDir); err != nil || (len(list.Entries) > 0) != c.stays {
				t.Errorf("the list: %v, %v", list, err)
			}
		})
	}
}

// wipe is what the plugin does with a request to drop.
func wipe(t *testing.T, p Plugin, f *fake) {
	t.Helper()
	drop, found, err := holdfile.LoadDrop(p.StateDir)
	if err != nil {
		t.Error(err)
	}
	if found {
		f.state.Dropped = drop.ID
		if err := errors.Join(holdfile.RemoveDrop(p.StateDir), holdfile.RemoveList(p.StateDir), holdfile.RemoveSeed(p.StateDir)); err != nil {
			t.Error(err)
		}
	}
}
