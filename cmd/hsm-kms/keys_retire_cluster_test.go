package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/hsm"
)

const (
	clusterA = "0a0a0a0a-0000-4000-8000-00000000000a"
	clusterB = "0b0b0b0b-0000-4000-8000-00000000000b"
)

// bind binds the rig's ring to a cluster, as keys create --cluster does.
func (r *retireRig) bind(uid string) {
	r.t.Helper()
	common, _ := r.hsmOf(r.tokens[0])
	var tokens []hsm.TokenConfig
	for _, token := range r.tokens {
		_, t := r.hsmOf(token)
		tokens = append(tokens, t)
	}
	set := hsm.Open(common, tokens)
	defer set.Start(r.t.Context())()
	for _, err := range set.Connected(r.t.Context()) {
		r.must(err)
	}
	bound, err := set.Bind(r.t.Context(), uid)
	r.must(err)
	for _, b := range bound {
		r.must(b.Err)
	}
}

// Two clusters whose configurations name one ring share its keys. Cluster A is through with the old key, and cluster B's
// Secrets are under it: its etcd is one that A's administrator does not know of. A ring that is bound lets only its own
// cluster's etcd pass for evidence; one that is not bound requires somebody to say that no other cluster uses it.
func TestRetireTwoClustersOneRing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		bound, etcd string // clusters
		sole        bool
		want        string // a refusal; empty: none
	}{
		"bound to B, evidence of A":               {clusterB, clusterA, false, "the ring belongs to the cluster " + clusterB + " (UID of its namespace kube-system), and etcd holds the cluster " + clusterA},
		"bound to B, evidence of A, answered for": {clusterB, clusterA, true, "the ring belongs to the cluster " + clusterB},
		"bound to A, evidence of A":               {clusterA, clusterA, false, ""},
		"bound to A, evidence of nobody knows":    {clusterA, "", false, "whether this is its etcd is not clear"},
		"not bound":                               {"", clusterA, false, "the ring is bound to no cluster"},
		"not bound, answered for":                 {"", clusterA, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRetireRig(t)
			b, stop, err := newFakeEtcd()
			r.must(err)
			t.Cleanup(stop)
			b.namespace(clusterB)
			r.must(b.put("secrets/bank/one", r.old))
			if test.bound != "" {
				r.bind(test.bound)
			}
			if test.etcd != "" {
				r.etcd.namespace(test.etcd)
			}
			r.makeReport()
			r.sole = test.sole
			said, errOut, code := r.retire()
			if test.want == "" {
				if code != 0 || len(said.Refusals) != 0 || said.Planned.Cluster != test.bound {
					t.Errorf("exit %d, %+v: %s", code, said, errOut)
				}
				return
			}
			if code != 1 || len(said.Refusals) != 1 || !strings.Contains(said.Refusals[0].Reason, test.want) || said.Refusals[0].Hint == "" || len(r.holders()) != 2 {
				t.Errorf("exit %d, %+v, want %q: %s", code, said.Refusals, test.want, errOut)
			}
		})
	}
}

// Tokens that name two clusters say nothing that could be relied on.
func TestRetireAmbiguousBinding(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	all := r.tokens
	for i, uid := range []string{clusterA, clusterB} {
		r.tokens = all[i : i+1]
		r.bind(uid)
	}
	r.tokens = all
	r.checkRefusal("it is not clear which cluster the ring belongs to: ")
}

// makeReport makes the evidence again.
func (r *retireRig) makeReport() {
	r.t.Helper()
	out, errOut, code := r.hsmkms("etcd", "report", "--endpoints", r.etcd.url, "-o", "json")
	if code != 0 {
		r.t.Fatalf("etcd report: exit %d: %s", code, errOut)
	}
	r.report = r.file("report.json", out)
}

// etcd report and doctor compare the two as well.
func TestReportAndDoctorCompareTheCluster(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	r.bind(clusterB)
	r.etcd.namespace(clusterA)
	const other = "the ring belongs to the cluster " + clusterB + " (UID of its namespace kube-system), and etcd holds the cluster " + clusterA
	out, errOut, code := r.hsmkms("etcd", "report", "--require-key", "current", "--endpoints", r.etcd.url, "-o", "json")
	if code != 1 || !strings.Contains(out, `"problem": "`+other) || !strings.Contains(out, `"cluster": "`+clusterB) {
		t.Errorf("etcd report: exit %d: %s%s", code, out, errOut)
	}
	look := func(args ...string) doctor.Finding {
		found, _, errOut := r.doctor(args...)
		for _, f := range found {
			if f.Check == "cluster" {
				return f
			}
		}
		t.Fatalf("doctor says nothing of the cluster: %+v, %s", found, errOut)
		return doctor.Finding{}
	}
	if f := look("--endpoints", r.etcd.url); f.Result != doctor.Warn || f.Detail != other || !strings.Contains(f.Hint, "hsm-kms etcd report") {
		t.Errorf("another cluster: %+v", f)
	}
	if f := look("--endpoints", "http://127.0.0.1:1"); f.Result != doctor.Warn || !strings.Contains(f.Detail, "is not known") {
		t.Errorf("no etcd: %+v", f)
	}
	if f := look(); f.Result != doctor.Pass || !strings.Contains(f.Detail, clusterB) {
		t.Errorf("etcd is not named: %+v", f)
	}
	r.etcd.namespace(clusterB)
	if f := look("--endpoints", r.etcd.url); f.Result != doctor.Pass || !strings.HasSuffix(f.Detail, ", which etcd holds") {
		t.Errorf("its own cluster: %+v", f)
	}
	if out, errOut, code := r.hsmkms("etcd", "report", "--require-key", "current", "--endpoints", r.etcd.url); code != 0 {
		t.Errorf("its own cluster: exit %d: %s%s", code, out, errOut)
	}
}

// With --yes nobody is asked, and all the same the key is judged again under the lock, by what etcd holds then.
func TestRetireJudgesAgainWithYes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		meanwhile func(*retireRig) error
		want      string
	}{
		"something was written": {func(r *retireRig) error { return r.etcd.put("secrets/shop/late", r.old) }, "etcd now: 1 object under "},
		"a token went away": {func(r *retireRig) error {
			r.tokens[1].faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
			return nil
		}, "every configured token can be reached: token hsm-b: "},
		"a key was added": {func(r *retireRig) error {
			return r.elsewhere("keys", "rotate", "--activate-in", "1h")
		}, "the plan changed while it was about to be carried out: the keys of the ring changed: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRetireRig(t)
			r.etcd.mu.Lock()
			r.etcd.afterReading = func() { r.must(test.meanwhile(r)) }
			r.etcd.mu.Unlock()
			r.checkRefusal(test.want)
		})
	}
}

// elsewhere runs a command in a process of its own.
func (r *retireRig) elsewhere(args ...string) error {
	cmd := exec.CommandContext(r.t.Context(), os.Args[0], append(args, "--config", r.configPath())...) //nolint:gosec // ourselves, as hsm-kms
	cmd.Args[0] = "hsm-kms"
	cmd.Env = append(os.Environ(), "TRANSCRIPT="+filepath.Join(r.dir, "transcript"), "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Reading etcd can take minutes, in which a pending key comes near its activation: it is judged by the clock afterwards.
func TestWithdrawJudgesByTheClockAfterTheReading(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	last := time.Now().Add(4 * time.Second) // at which it may be withdrawn
	r.generateAt(r.tokens[0], last.Add(5*time.Minute))
	keys := r.keys()
	r.old = keys[2].KeyID
	if keys[2].State != "pending" {
		t.Fatalf("%+v", keys)
	}
	r.etcd.mu.Lock()
	r.etcd.afterReading = func() { // of the first judging: what is read for the second waits
		r.etcd.mu.Lock()
		time.AfterFunc(time.Until(last), r.etcd.mu.Unlock)
	}
	r.etcd.mu.Unlock()
	out, errOut, code := r.hsmkms("keys", "retire", r.old, "--sole-cluster", "--endpoints", r.etcd.url, "--yes", "-o", "json")
	if time.Now().Before(last) {
		t.Fatalf("it ended before the reading did: exit %d: %s%s", code, out, errOut)
	}
	if code != 1 || !strings.Contains(errOut, "within 5m0s of it a node may have sealed under it") || r.holders() == nil {
		t.Errorf("exit %d, on %v: %s%s", code, r.holders(), out, errOut)
	}
}
