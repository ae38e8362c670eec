package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// fleet is several tokens in one configuration, each a SoftHSM folder of its own behind a faulty module of its own.
// Token i is tokens[i] behind modules[i]; 0 is the bench's own and the first in order.
type fleet struct {
	*bench
	tokens  []*softhsm.Token
	modules []*faultp11.Module
}

// newFleet makes n copies of one token with one key in its ring. Nothing runs yet.
func newFleet(t *testing.T, n int, change func(*hsm.Config, *hsm.TokenConfig)) *fleet {
	t.Helper()
	b := newBench(t, change)
	f := &fleet{bench: b, tokens: []*softhsm.Token{b.token}, modules: []*faultp11.Module{b.module}}
	for len(f.tokens) < n {
		token, err := b.token.CopyTo(filepath.Join(t.TempDir(), "copy"))
		if err != nil {
			t.Fatal(err)
		}
		f.join(token)
	}
	return f
}

// join puts a token at the end of the configuration.
func (f *fleet) join(token *softhsm.Token) {
	f.t.Helper()
	module := faultp11.New(f.t, token.Module, faultp11.Options{SoftHSMConf: token.Conf()})
	cfg := f.cfg
	cfg.Name = fmt.Sprintf("hsm-%c", 'a'+len(f.tokens))
	cfg.Module, cfg.PINFile = module.Path(), token.PINFile
	f.tokens, f.modules, f.others = append(f.tokens, token), append(f.modules, module), append(f.others, cfg)
}

// member is token i as the ring sees it.
func (f *fleet) member(i int) envelope.Token { return f.set.Members()[i] }

// uses is how often token i was asked to use a key.
func (f *fleet) uses(i int) int {
	n := 0
	for _, function := range []string{"C_EncryptInit", "C_DecryptInit", "C_SignInit"} {
		n += f.modules[i].Calls(function)
	}
	return n
}

// servedBy wants that what is asked goes to token i and to no other. A look at a token that was suspected before uses it
// too, so it is asked again until no such look comes between.
func (f *fleet) servedBy(id envelope.KeyID, i int) {
	f.t.Helper()
	f.eventually(10*time.Second, func() error {
		before := make([]int, len(f.modules))
		for j := range f.modules {
			before[j] = f.uses(j)
		}
		f.roundTrip(id)
		for j := range f.modules {
			switch n := f.uses(j) - before[j]; {
			case j == i && n != 2:
				return fmt.Errorf("token %d was used %d times to seal and open, wanted 2", j, n)
			case j != i && n != 0 && f.member(j).Generation() != 0: // without a connection, it is the attempts to make one
				return fmt.Errorf("token %d was used %d times, and token %d should serve", j, n, i)
			}
		}
		return nil
	})
}

// roundTrip seals and opens, within what kube-apiserver waits.
func (b *bench) roundTrip(id envelope.KeyID) []byte {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 3*time.Second)
	defer cancel()
	dek := bytes.Repeat([]byte{9}, 32)
	wrapped, err := b.ring.Seal(ctx, id, dek)
	if err != nil {
		b.t.Fatalf("sealing: %v", err)
	}
	opened, err := b.ring.Open(ctx, id.String(), wrapped)
	if err != nil || !bytes.Equal(opened, dek) {
		b.t.Fatalf("opening: %x, %v", opened, err)
	}
	return wrapped
}

// untilUsable waits until token i can be used, or cannot.
func (f *fleet) untilUsable(i int, usable bool) {
	f.t.Helper()
	f.eventually(10*time.Second, func() error {
		if (f.member(i).Generation() != 0) != usable {
			return fmt.Errorf("token %d: generation %d, %v", i, f.member(i).Generation(), f.member(i).Problem())
		}
		return nil
	})
}

// healthy wants the probe behind Status to succeed, with this current key.
func (b *bench) healthy(id envelope.KeyID) {
	b.t.Helper()
	if err := b.ring.Exercise(b.t.Context()); err != nil {
		b.t.Errorf("the probe: %v", err)
	}
	if got := b.current(); got != id {
		b.t.Errorf("current is %s, wanted %s", got, id)
	}
}

// What every kind of failure of the first token looks like from outside: nothing but a short stall; and then the first
// token serves again.
func TestFailover(t *testing.T) {
	t.Parallel()
	faults := map[string]func(*fleet) (undo func()){
		"gone": func(f *fleet) func() {
			f.module.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
			return f.module.Clear
		},
		"error": func(f *fleet) func() {
			f.module.FailAll(pkcs11.CKR_GENERAL_ERROR).UntilCleared()
			return f.module.Clear
		},
		"not initialised": func(f *fleet) func() {
			f.module.FailAll(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).UntilCleared()
			return f.module.Clear
		},
		"hangs": func(f *fleet) func() { return f.module.HangAll() },
		"unplugged": func(f *fleet) func() {
			putBack, err := f.tokens[0].TakeAway()
			if err != nil {
				f.t.Fatal(err)
			}
			return func() {
				if err := putBack(); err != nil {
					f.t.Error(err)
				}
			}
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 2, impatient)
			f.start()
			id := f.current()
			f.servedBy(id, 0)
			undo := fault(f)
			start := time.Now()
			f.roundTrip(id) // within 3 s each
			t.Logf("the first round trip took %s", time.Since(start).Round(time.Millisecond))
			f.eventually(10*time.Second, func() error { // the first token is found out
				if f.member(0).Generation() != 0 {
					f.roundTrip(id)
					return errors.New("the first token still counts as usable")
				}
				return nil
			})
			start = time.Now()
			f.servedBy(id, 1)
			if took := time.Since(start); took >= f.cfg.CallTimeout { // nobody waited for the first token
				t.Errorf("with the first token known to be away, a round trip took %s", took)
			}
			f.healthy(id)
			undo()
			f.untilUsable(0, true)
			f.servedBy(id, 0)
			f.healthy(id)
		})
	}
}

// A caller that gives no deadline is served too, and one that no token can serve is not kept.
func TestFailoverWithoutDeadline(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, impatient)
	f.start()
	id := f.current()
	releases := []func(){f.modules[0].HangAll(), f.modules[1].HangAll()}
	start := time.Now()
	if _, err := f.ring.Seal(context.WithoutCancel(t.Context()), id, make([]byte, 32)); err != nil {
		t.Errorf("sealing: %v", err)
	}
	releases = append(releases, f.modules[2].HangAll())
	if _, err := f.ring.Seal(context.WithoutCancel(t.Context()), id, make([]byte, 32)); !errors.Is(err, envelope.ErrUnavailable) {
		t.Errorf("with every token hanging: %v", err)
	}
	if took := time.Since(start); took > 8*f.cfg.CallTimeout {
		t.Errorf("it took %s with a callTimeout of %s", took, f.cfg.CallTimeout)
	}
	for _, release := range releases {
		release()
	}
	f.eventually(10*time.Second, func() error { return f.ring.Exercise(t.Context()) })
	f.untilUsable(0, true)
	f.servedBy(id, 0)
}
