package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// neighbours is two tokens in one module, each with a version of its own in the ring.
type neighbours struct {
	*bench
	keys    []envelope.KeyID // by token
	folders []string         // by token
}

func newNeighbours(t *testing.T, change func(*hsm.Config, *hsm.TokenConfig)) *neighbours {
	t.Helper()
	n := &neighbours{bench: newBench(t, change)}
	stored := func() []string {
		folders, err := filepath.Glob(filepath.Join(n.token.Store(), "*-*"))
		if err != nil {
			t.Fatal(err)
		}
		return folders
	}
	first := stored()
	second, err := n.token.Another(t.Context(), "second", "")
	if err != nil {
		t.Fatal(err)
	}
	n.folders = first
	for _, folder := range stored() {
		if folder != first[0] {
			n.folders = append(n.folders, folder)
		}
	}
	cfg := n.cfg
	cfg.Name, cfg.Label, cfg.PINFile = "hsm-b", "second", second.PINFile
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hsm.Generate(t.Context(), n.common, cfg, id); err != nil {
		t.Fatal(err)
	}
	n.others = []hsm.TokenConfig{cfg}
	n.run()
	for _, err := range n.set.Connected(n.within(20 * time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := n.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, member := range n.set.Members() {
		keys, err := member.Keys(t.Context())
		if err != nil || len(keys) != 1 {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		n.keys = append(n.keys, keys[0].ID)
	}
	return n
}

// serves wants token i to go on serving for d, within kube-apiserver's patience each time, and gives its longest stall.
func (n *neighbours) serves(i int, d time.Duration) (longest time.Duration) {
	n.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		start := time.Now()
		n.roundTrip(n.keys[i])
		longest = max(longest, time.Since(start))
		n.pause(2 * time.Millisecond)
	}
	return longest
}

// takeAway unplugs token i alone, and has that noticed.
func (n *neighbours) takeAway(i int) {
	n.t.Helper()
	if err := os.Rename(n.folders[i], filepath.Join(n.t.TempDir(), "away")); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Second)
	defer cancel()
	if _, err := n.ring.Seal(ctx, n.keys[i], make([]byte, 32)); err == nil {
		n.t.Fatal("a token that is away seals")
	}
}

// pause lets others have the two cores.
func (b *bench) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-b.t.Context().Done():
	}
}

// One of two tokens in a module goes away. Only C_Finalize would tell whether it is back, and that is tried once in
// NeighbourPause at most, for it takes the other token's sessions. Nothing spins meanwhile.
func TestNeighbourIsRarelyDisturbed(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t, func(c *hsm.Config, _ *hsm.TokenConfig) { c.NeighbourPause = 2 * time.Second })
	n.serves(1, 50*time.Millisecond)
	inits := n.module.Calls("C_Initialize")
	generation := n.set.Members()[1].Generation()
	n.takeAway(0)
	sessions := n.module.Calls("C_OpenSession")
	longest := n.serves(1, 5*time.Second)
	if again := n.module.Calls("C_Initialize") - inits; again < 1 || again > 3 {
		t.Errorf("the module was initialised anew %d times in five seconds", again)
	}
	if drops := n.set.Members()[1].Generation() - generation; drops > 3 {
		t.Errorf("the healthy token was connected anew %d times", drops)
	}
	if opened := n.module.Calls("C_OpenSession") - sessions; opened > 100 {
		t.Errorf("%d sessions were opened in five seconds", opened)
	}
	t.Logf("longest stall of the healthy token: %s\n%s", longest, n.log)
}

// The same while a call of the healthy token hangs, so that the module cannot be finalised: trying to must not cost the
// healthy token its connection, nor hold up its other sessions.
func TestNeighbourWithAHangingCall(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t, func(c *hsm.Config, _ *hsm.TokenConfig) { c.NeighbourPause = time.Second })
	n.module.Delay("C_Encrypt", 8*time.Second) // a delay that has begun is not cut short
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := n.ring.Seal(ctx, n.keys[1], make([]byte, 32)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("sealing with a call that takes longer: %v", err)
	}
	n.module.ClearFunction("C_Encrypt")
	n.serves(1, 4*n.cfg.CallTimeout) // one that hangs among many is of no weight
	generation := n.set.Members()[1].Generation()
	n.takeAway(0)
	longest := n.serves(1, 4*time.Second)
	if n.module.InFlight() == 0 {
		t.Fatal("the call has returned: this test proves nothing")
	}
	if drops := n.set.Members()[1].Generation() - generation; drops > 0 {
		t.Errorf("the healthy token was connected anew %d times", drops)
	}
	if longest > n.cfg.CallTimeout {
		t.Errorf("the healthy token's longest stall was %s", longest)
	}
}

// While one token's connecting hangs, the neighbour that it took down with it does not keep callers waiting.
func TestNeighbourWaitsForHangingConnect(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t, nil)
	release := n.module.Hang("C_GetSlotList")
	defer release()
	n.module.Fail("C_EncryptInit", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).Times(4)
	for i := range n.keys {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, _ = n.ring.Seal(ctx, n.keys[i], make([]byte, 32))
		cancel()
	}
	if err := n.module.WaitHung(n.within(5*time.Second), "C_GetSlotList", 1); err != nil {
		t.Fatal(err)
	}
	n.eventually(10*time.Second, func() error {
		for i := range n.keys {
			start := time.Now()
			_, err := n.ring.Seal(t.Context(), n.keys[i], make([]byte, 32))
			if took := time.Since(start); took > 100*time.Millisecond || !errors.Is(err, envelope.ErrUnavailable) {
				return fmt.Errorf("token %d: refused after %s: %w", i, took, err)
			}
		}
		return nil
	})
	release()
	n.eventually(10*time.Second, func() error { return errors.Join(n.set.Members()[0].Problem(), n.set.Members()[1].Problem()) })
	n.roundTrip(n.keys[0])
	n.roundTrip(n.keys[1])
}

// An attempt to connect that was given up on and succeeds late is taken, and the next attempt, which waited for it, does
// not connect beside it: the first one's sessions would be nobody's.
func TestLateConnectIsNotDoubled(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	id := b.current()
	for range 3 {
		release := b.module.Hang("C_FindObjectsInit")
		b.module.Fail("C_EncryptInit", pkcs11.CKR_DEVICE_REMOVED).Once()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, _ = b.ring.Seal(ctx, id, make([]byte, 32))
		cancel()
		if err := b.module.WaitHung(b.within(5*time.Second), "C_FindObjectsInit", 1); err != nil {
			t.Fatal(err)
		}
		// Until the attempt has been given up on, and the next one waits for it.
		b.eventually(5*time.Second, func() error {
			if b.set.Problem() == nil || !errors.Is(b.set.Problem(), envelope.ErrUnavailable) {
				return errors.New("not given up yet")
			}
			return nil
		})
		b.pause(time.Second)
		release()
		b.eventually(5*time.Second, func() error { return b.ring.Exercise(t.Context()) })
		b.roundTrip(id)
	}
	b.pause(100 * time.Millisecond)
	b.eventually(5*time.Second, func() error {
		if n := b.module.OpenSessions(); n > 2 {
			return fmt.Errorf("%d sessions are open; one works and one keeps the login", n)
		}
		return nil
	})
}
