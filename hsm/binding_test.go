package hsm_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

const (
	clusterA = "0b7e2d3c-6d2a-4c55-9f0e-8f1f6c1d2a3b"
	clusterB = "5f1c9b1e-0000-4000-8000-0123456789ab"
)

func (b *bench) mustBind(uid string) hsm.Bound {
	b.t.Helper()
	all, err := b.set.Bind(b.t.Context(), uid)
	if err != nil || len(all) != 1 {
		b.t.Fatalf("binding to %s: %+v, %v", uid, all, err)
	}
	return all[0]
}

func TestBind(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	if uid, err := hsm.ClusterOf(b.set.Bindings(t.Context())); uid != "" || err != nil {
		t.Errorf("before: %q, %v", uid, err)
	}
	if got := b.mustBind(strings.ToUpper(clusterA)); got != (hsm.Bound{Token: "hsm-a", Outcome: hsm.Made}) {
		t.Errorf("%+v", got)
	}
	if uid, err := hsm.ClusterOf(b.set.Bindings(t.Context())); uid != clusterA || err != nil {
		t.Errorf("%q, %v", uid, err)
	}
	b.module.ResetCounters()
	if got := b.mustBind(clusterA); got != (hsm.Bound{Token: "hsm-a", Outcome: hsm.Made}) {
		t.Errorf("again: %+v", got)
	}
	if all, err := b.set.Bind(t.Context(), clusterB); all != nil || !errors.Is(err, hsm.ErrOtherCluster) || !strings.Contains(err.Error(), clusterA) {
		t.Errorf("to another cluster: %+v, %v", all, err)
	}
	for _, bad := range []string{"", "kube-system", clusterA + " ", clusterA + "\n", strings.Repeat("a", 1<<16)} {
		if _, err := b.set.Bind(t.Context(), bad); err == nil || len(err.Error()) > 500 {
			t.Errorf("to %.20q: %v", bad, err)
		}
	}
	if n := b.module.Calls("C_CreateObject"); n != 0 {
		t.Errorf("%d objects were made", n)
	}
	// It is no key, and does not disturb those that are.
	if n := b.keysOnToken(); n != 1 || b.current().Ring != ringName {
		t.Errorf("%d keys", n)
	}
}

// A token that refuses data objects leaves the ring unbound, and goes on.
func TestBindRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	b.module.Fail("C_CreateObject", pkcs11.CKR_FUNCTION_NOT_SUPPORTED).UntilCleared()
	if got := b.mustBind(clusterA); got.Outcome != hsm.NotMade || got.Err == nil {
		t.Errorf("%+v", got)
	}
	if uid, err := hsm.ClusterOf(b.set.Bindings(t.Context())); uid != "" || err != nil {
		t.Errorf("%q, %v", uid, err)
	}
}

// Two clusters that bind one ring at one moment: both say so, and neither wins.
func TestBindTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	b.module.HangCall("C_CreateObject").Once()
	done := make(chan hsm.Bound)
	go func() { done <- b.mustBind(clusterA) }()
	if err := b.module.WaitHung(b.within(b.cfg.CallTimeout), "C_CreateObject", 1); err != nil {
		t.Fatal(err)
	}
	b.plantData(true, "hsm-kms/cluster/1 "+clusterB)
	b.module.ClearFunction("C_CreateObject")
	if got := <-done; got.Outcome == hsm.NotMade { // SoftHSM shows another process's object only after the next change
		t.Errorf("%+v", got)
	}
	uid, err := hsm.ClusterOf(b.another().set.Bindings(t.Context()))
	if uid != "" || !errors.Is(err, envelope.ErrAmbiguous) || !strings.Contains(err.Error(), clusterA) || !strings.Contains(err.Error(), clusterB) {
		t.Errorf("%q, %v", uid, err)
	}
}

func TestBindingUnclear(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		private bool
		value   string
	}{
		"planted by somebody without login": {false, "hsm-kms/cluster/1 " + clusterA},
		"of a later version":                {true, "hsm-kms/cluster/2 " + clusterA},
		"empty":                             {true, ""},
		"not a UID":                         {true, "hsm-kms/cluster/1 production"},
		"more than a UID":                   {true, "hsm-kms/cluster/1 " + clusterA + "\n"},
		"very long":                         {true, strings.Repeat("x", 10_000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil).start()
			b.plantData(test.private, test.value)
			generation := b.set.Generation()
			uid, err := hsm.ClusterOf(b.set.Bindings(t.Context()))
			if uid != "" || !errors.Is(err, envelope.ErrAmbiguous) || len(err.Error()) > 500 {
				t.Errorf("%q, %v", uid, err)
			}
			if _, err := b.set.Bind(t.Context(), clusterA); !errors.Is(err, envelope.ErrAmbiguous) || b.module.Calls("C_CreateObject") != 0 {
				t.Errorf("binding all the same: %v", err)
			}
			if b.set.Generation() != generation {
				t.Error("the connection was given up for it")
			}
		})
	}
}

// Without its login a token shows no private object, and no error: that is no unbound ring.
func TestBindingWithoutLogin(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	b.mustBind(clusterA)
	b.module.DropLogin()
	if uid, err := hsm.ClusterOf(b.set.Bindings(t.Context())); uid != "" || err == nil {
		t.Errorf("%q, %v", uid, err)
	}
	b.eventually(b.cfg.CallTimeout*10, func() error {
		uid, err := hsm.ClusterOf(b.set.Bindings(t.Context()))
		if err == nil && uid != clusterA {
			t.Errorf("%q", uid)
		}
		return err
	})
}

func TestClusterOf(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for name, test := range map[string]struct {
		all  []hsm.Binding
		want string
		err  error
	}{
		"none":            {nil, "", nil},
		"unbound":         {[]hsm.Binding{{Token: "a"}, {Token: "b"}}, "", nil},
		"one says it":     {[]hsm.Binding{{Token: "a"}, {Token: "b", Cluster: clusterA}}, clusterA, nil},
		"both say it":     {[]hsm.Binding{{Token: "a", Cluster: clusterA}, {Token: "b", Cluster: clusterA}}, clusterA, nil},
		"they contradict": {[]hsm.Binding{{Token: "a", Cluster: clusterA}, {Token: "b", Cluster: clusterB}}, "", envelope.ErrAmbiguous},
		"one is away":     {[]hsm.Binding{{Token: "a", Cluster: clusterA}, {Token: "b", Err: away}}, "", away},
	} {
		if got, err := hsm.ClusterOf(test.all); got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// another is the same token through a module of its own, as another process sees it.
func (b *bench) another() *bench {
	b.t.Helper()
	other := *b
	other.module = faultp11.New(b.t, b.token.Module, faultp11.Options{SoftHSMConf: b.token.Conf()})
	other.cfg.Module, other.common.StateDir = other.module.Path(), b.t.TempDir()
	return other.start()
}

// plantData makes a data object of the ring through a module of its own, as a stranger would.
func (b *bench) plantData(private bool, value string) {
	b.t.Helper()
	module := faultp11.New(b.t, b.token.Module, faultp11.Options{SoftHSMConf: b.token.Conf()})
	defer softhsm.NoForks()()
	ctx := pkcs11.New(module.Path())
	b.must(ctx.Initialize())
	defer func() { _ = ctx.Finalize() }()
	slots, err := ctx.GetSlotList(true)
	b.must(err)
	for _, slot := range slots {
		info, err := ctx.GetTokenInfo(slot)
		b.must(err)
		if info.Label != b.cfg.Label {
			continue
		}
		session, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		b.must(err)
		pin, err := os.ReadFile(b.cfg.PINFile)
		b.must(err)
		b.must(ctx.Login(session, pkcs11.CKU_USER, strings.TrimSpace(string(pin))))
		_, err = ctx.CreateObject(session, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, private), pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, "hsm-kms"),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, ringName), pkcs11.NewAttribute(pkcs11.CKA_VALUE, []byte(value)),
		})
		b.must(err)
		return
	}
	b.t.Fatal("no such token")
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}
