package hardening

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// patience is how long anything may take before a test gives up on it: on a busy machine a second's work takes a minute.
const patience = 2 * time.Minute

// rig is a token, and a plugin that runs on it.
type rig struct {
	t      *testing.T
	dir    string
	token  *softhsm.Token
	faults *faultp11.Module // nil: there is no faulty module between
	plugin *plugin.Plugin
	http   string // host:port
}

// options are what a test may ask of its rig.
type options struct {
	pin    string
	extra  string // more lines of configuration
	token  string // more fields of the token
	faulty bool
	http   string // host:port; "": a free one
	audit  string // path of the audit trail; "": beside the rest
	audits string // more fields of audit
}

// newRig makes the token, its first key, and starts the plugin.
func newRig(t *testing.T, o options) *rig {
	t.Helper()
	w := &rig{t: t, dir: shortDir(t), http: o.http}
	if w.http == "" {
		w.http = freeAddress(t)
	}
	token, err := softhsm.New(t.Context(), filepath.Join(w.dir, "softhsm"), "k8s", o.pin)
	if err != nil {
		t.Fatal(err)
	}
	w.token = token
	used := *token
	if o.faulty {
		w.faults = faultp11.New(t, token.Module, faultp11.Options{SoftHSMConf: token.Conf()})
		used.Module = w.faults.Path()
	}
	w.plugin, err = plugin.New(plugin.Options{
		Bin: program, Dir: filepath.Join(w.dir, "plugin"), Token: &used, HTTP: w.http, Extra: o.extra, TokenExtra: o.token,
		Audit: o.audit, AuditExtra: o.audits,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := w.within(patience)
	if _, err := w.plugin.CreateKey(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.plugin.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.plugin.Kill()
		if t.Failed() {
			t.Logf("the end of the plugin's log:\n%s", w.plugin.Process().Tail(20))
		}
	})
	return w
}

func (w *rig) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	w.t.Cleanup(cancel)
	return ctx
}

// client is a connection as kube-apiserver makes one.
func (w *rig) client() kmsapi.KeyManagementServiceClient {
	w.t.Helper()
	conn, err := grpc.NewClient("unix://"+w.plugin.Socket(), grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return kmsapi.NewKeyManagementServiceClient(conn)
}

// metrics is a scrape.
func (w *rig) metrics() string {
	w.t.Helper()
	text, err := get(w.within(patience), "http://"+w.http+"/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// get is the body of an answer 200.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, answer.Status, body)
	}
	return body, err
}

// read is a file, which may be missing.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// eventually tries f until it succeeds; its last error fails the test.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", patience, err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := proc.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}
