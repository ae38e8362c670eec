package hardening

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
	_ "github.com/hsm-kms/hsm-kms/test/testworker" // for the tokens that the test opens itself
)

// TestMemoryOfHold looks for DEKs and hold keys in the memory of a plugin that is armed, that is on hold, and that was wiped. What
// it holds lies there sealed under a key in one locked page, and so none is found beside the remains of the last requests.
func TestMemoryOfHold(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		notChecked(t, "only root may read the memory")
	}
	w := newRig(t, options{faulty: true, extra: "probeInterval: 1s\noutageHold: 1h"})
	secrets := w.holdKeys()
	mark := make([]byte, markSize)
	_, _ = rand.Read(mark) // never fails
	client := w.client()
	var sealed []*kmsapi.EncryptResponse
	for i := range uint64(deks) {
		answer, err := client.Encrypt(w.within(patience), &kmsapi.EncryptRequest{Plaintext: binary.BigEndian.AppendUint64(bytes.Clone(mark), i), Uid: requestUID})
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, answer)
	}
	w.untilHold(func(s *holdfile.State) bool { return s.Armed && s.Held == deks })
	w.searchHold("armed", mark, secrets)
	w.lockedPage()

	w.faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	w.untilHold(func(s *holdfile.State) bool { return s.Holding })
	for i, answer := range sealed {
		opened, err := client.Decrypt(w.within(patience), &kmsapi.DecryptRequest{Ciphertext: answer.Ciphertext, KeyId: answer.KeyId, Uid: requestUID})
		if err != nil || !bytes.Equal(opened.Plaintext, binary.BigEndian.AppendUint64(bytes.Clone(mark), uint64(i))) {
			t.Fatalf("DEK %d on hold: %v", i, err)
		}
	}
	for i := range uint64(deks) {
		answer, err := client.Encrypt(w.within(patience), &kmsapi.EncryptRequest{Plaintext: binary.BigEndian.AppendUint64(bytes.Clone(mark), i), Uid: requestUID})
		if err != nil || !strings.HasSuffix(answer.KeyId, "/hold") {
			t.Fatalf("%v, %v", answer, err)
		}
	}
	w.searchHold("on hold", mark, secrets)

	drop := holdfile.Drop{ID: holdfile.NewID()}
	if err := holdfile.SaveDrop(filepath.Join(w.dir, "plugin", "state"), drop); err != nil {
		t.Fatal(err)
	}
	w.untilHold(func(s *holdfile.State) bool { return s.Dropped == drop.ID && s.Held == 0 })
	w.searchHold("wiped", mark, secrets)
	if _, err := client.Decrypt(w.within(patience), &kmsapi.DecryptRequest{Ciphertext: sealed[0].Ciphertext, KeyId: sealed[0].KeyId}); err == nil {
		t.Error("a wiped hold answered")
	}
}

// holdKeys derives the hold keys of some days around today from a copy of the token.
func (w *rig) holdKeys() map[string][]byte {
	w.t.Helper()
	token, err := w.token.CopyTo(filepath.Join(w.dir, "copy"))
	if err != nil {
		w.t.Fatal(err)
	}
	set := hsm.Open(hsm.Config{Ring: "kube-secrets", Profile: envelope.AESGCM, StateDir: w.t.TempDir(), Log: slog.New(slog.DiscardHandler)}, []hsm.TokenConfig{{
		Name: "copy", Module: token.Module, Label: token.Label, PINFile: token.PINFile, MaxSessions: 2, CallTimeout: time.Minute,
		Env: map[string]string{"SOFTHSM2_CONF": token.Conf()},
	}})
	stop := set.Start(w.t.Context())
	defer stop()
	if err := errors.Join(set.Connected(w.within(patience))...); err != nil {
		w.t.Fatal(err)
	}
	keys, err := set.Keys(w.within(patience))
	if err != nil || len(keys) != 1 {
		w.t.Fatalf("%d keys, %v", len(keys), err)
	}
	today, secrets := envelope.DayOf(time.Now()), map[string][]byte{}
	for day := today - 2; day <= today+2; day++ {
		key, err := envelope.DeriveHoldKey(w.within(patience), set, envelope.AESGCM, keys[0].ID, day)
		if err != nil {
			w.t.Fatal(err)
		}
		secrets[fmt.Sprintf("the hold key of day %d", int(day)-int(today))] = bytes.Clone(key[:])
	}
	return secrets
}

// untilHold waits until the plugin says that of its hold.
func (w *rig) untilHold(is func(*holdfile.State) bool) {
	w.t.Helper()
	eventually(w.t, func() error {
		answer, err := kmsplugin.StatusOf(w.within(patience), w.plugin.Socket())
		if answer.Hold == nil || !is(answer.Hold) {
			return fmt.Errorf("its hold is %+v, and its Status fails: %w", answer.Hold, err)
		}
		return nil
	})
}

// searchHold looks for DEKs and for hold keys.
func (w *rig) searchHold(when string, mark []byte, secrets map[string][]byte) {
	w.t.Helper()
	found, copies, received := map[string]int{}, 0, 0
	for region := range w.memory() {
		for name, secret := range secrets {
			found[name] += bytes.Count(region, secret)
		}
		for rest := region; ; {
			at := bytes.Index(rest, mark)
			if at < 0 || len(rest) < at+dekSize {
				break
			}
			if bytes.HasPrefix(rest[at+dekSize:], []byte(receivedEnd)) {
				received++ // gRPC's
			} else {
				copies++
			}
			rest = rest[at+dekSize:]
		}
	}
	w.t.Logf("%s: %d copies of %d DEKs, %d more in received requests", when, copies, deks, received)
	if copies > mostLeft {
		w.t.Errorf("%s: there are %d copies of DEKs in the memory, want at most %d", when, copies, mostLeft)
	}
	for name, n := range found {
		if n > 0 {
			w.t.Errorf("%s: %s is in the memory %d times", when, name, n)
		}
	}
}

// lockedPage checks that there is a mapping of one page that is locked and left out of core files (proc_pid_smaps(5)).
func (w *rig) lockedPage() {
	w.t.Helper()
	smaps := read(w.t, fmt.Sprintf("/proc/%d/smaps", w.plugin.Process().PID()))
	size := false
	for line := range strings.Lines(smaps) {
		if strings.HasPrefix(line, "Size:") {
			size = strings.Fields(line)[1] == "4"
		}
		if flags, is := strings.CutPrefix(line, "VmFlags:"); is && size && strings.Contains(flags, " lo") && strings.Contains(flags, " dd") {
			return
		}
	}
	w.t.Error("no mapping of one page is locked and left out of core files")
}

// TestHoldOfFrozenProcess: the time of a process that was stopped counts, and what it held is wiped before it answers again.
func TestHoldOfFrozenProcess(t *testing.T) {
	t.Parallel()
	const limit = 15 * time.Second
	w := newRig(t, options{faulty: true, extra: "probeInterval: 1s\noutageHold: 15s"})
	one := w.sealOne()
	w.untilHold(func(s *holdfile.State) bool { return s.Armed })
	w.faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	w.untilHold(func(s *holdfile.State) bool { return s.Holding })
	began := time.Now()
	w.plugin.Process().Signal(unix.SIGSTOP)
	wait(t, limit+time.Second-time.Since(began))
	w.plugin.Process().Signal(unix.SIGCONT)
	if answer, err := w.client().Decrypt(w.within(patience), &kmsapi.DecryptRequest{Ciphertext: one.sealed, KeyId: one.keyID}); err == nil {
		t.Errorf("the first request after it was answered: %d bytes", len(answer.Plaintext))
	}
	w.untilHold(func(s *holdfile.State) bool { return !s.Holding && s.Held == 0 })
	w.faults.Clear()
	eventually(t, func() error { // with the HSM
		_, err := w.client().Decrypt(w.within(patience), &kmsapi.DecryptRequest{Ciphertext: one.sealed, KeyId: one.keyID})
		return err
	})
	if s, err := kmsplugin.StatusOf(w.within(patience), w.plugin.Socket()); err != nil || s.Hold.Armed {
		t.Errorf("armed again within seven days: %+v, %v", s.Hold, err)
	}
}

// TestHoldIsRevoked: an HSM that answers, and has the key no more, does not allow its use or refuses the PIN, is not away. What is
// held is wiped, armed or on hold, and Status is an error.
func TestHoldIsRevoked(t *testing.T) {
	t.Parallel()
	for name, revoke := range map[string]func(*rig){
		"key not permitted": func(w *rig) {
			for _, function := range []string{"C_EncryptInit", "C_DecryptInit"} {
				w.faults.Fail(function, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED).UntilCleared()
			}
		},
		"PIN refused": func(w *rig) {
			w.faults.Fail("C_Login", pkcs11.CKR_PIN_INCORRECT).UntilCleared()
			w.faults.DropLogin()
		},
		"PIN expired": func(w *rig) {
			w.faults.Fail("C_Login", pkcs11.CKR_PIN_EXPIRED).UntilCleared()
			w.faults.DropLogin()
		},
	} {
		for _, onHold := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, on hold: %t", name, onHold), func(t *testing.T) {
				t.Parallel()
				w := newRig(t, options{faulty: true, extra: "probeInterval: 1s\nrefreshInterval: 1s\noutageHold: 1h"})
				one := w.sealOne()
				w.untilHold(func(s *holdfile.State) bool { return s.Armed })
				if onHold {
					w.faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
					w.untilHold(func(s *holdfile.State) bool { return s.Holding })
					w.openOne(one)
					w.faults.Clear()
				}
				revoke(w)
				w.untilHold(func(s *holdfile.State) bool { return !s.Holding && !s.Armed && s.Held == 0 })
				if answer, err := kmsplugin.StatusOf(w.within(patience), w.plugin.Socket()); err == nil {
					t.Errorf("Status is no error: %+v", answer)
				}
				if _, err := w.client().Decrypt(w.within(patience), &kmsapi.DecryptRequest{Ciphertext: one.sealed, KeyId: one.keyID}); err == nil {
					t.Error("a DEK was opened")
				}
				eventually(t, func() error {
					if !strings.Contains(read(t, w.plugin.AuditLog()), `"hold.wiped"`) {
						return errors.New("the audit trail does not say that it was wiped")
					}
					return nil
				})
			})
		}
	}
}

// TestHoldIsWarmAfterRestart: a plugin that was killed holds 2,000 DEKs again within seconds while the HSM is there.
func TestHoldIsWarmAfterRestart(t *testing.T) {
	t.Parallel()
	const many = 2000
	w := newRig(t, options{faulty: true, extra: "probeInterval: 1s\noutageHold: 1h"})
	client, dek := w.client(), make([]byte, 32)
	for range many {
		if _, err := client.Encrypt(w.within(patience), &kmsapi.EncryptRequest{Plaintext: dek, Uid: requestUID}); err != nil {
			t.Fatal(err)
		}
	}
	w.untilHold(func(s *holdfile.State) bool { return s.Armed })
	eventually(t, func() error { // it is written every second
		list, err := holdfile.LoadList(filepath.Join(w.dir, "plugin", "state"))
		if err == nil && len(list.Entries) != many {
			err = fmt.Errorf("%d entries in list.json", len(list.Entries))
		}
		return err
	})
	w.plugin.Kill()
	began := time.Now()
	if _, err := w.plugin.Start(w.within(patience)); err != nil {
		t.Fatal(err)
	}
	started := time.Since(began)
	w.untilHold(func(s *holdfile.State) bool { return s.Armed && s.Held == many })
	t.Logf("it started within %s, and was armed with %d DEKs %s later", started.Round(time.Millisecond), many, (time.Since(began) - started).Round(time.Millisecond))
	w.faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	w.untilHold(func(s *holdfile.State) bool { return s.Holding })
	if one := w.sealOne(); !strings.HasSuffix(one.keyID, "/hold") {
		t.Errorf("written under %s", one.keyID)
	}
}
