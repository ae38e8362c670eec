package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// starts measures how long it takes from the start of the process to the first Status that is ok, by the keys in the ring
// and by what each PKCS#11 call takes, and counts the calls.
func (w *rig) starts(ctx context.Context, t *table) error {
	dir := filepath.Join(w.dir, "starts")
	token, err := softhsm.New(ctx, filepath.Join(dir, "t"), "bench", "")
	if err != nil {
		return err
	}
	s, err := w.small(dir, token, false, "")
	if err != nil {
		return err
	}
	have := 0
	for _, keys := range []int{1, 20, 100} {
		tell(fmt.Sprintf("starts with %s", counted(keys, "key")))
		if err := w.makeKeys(ctx, dir, token, keys-have); err != nil {
			return err
		}
		have = keys
		for _, delay := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond} {
			if err := startsAt(ctx, s, keys, delay, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// startsAt adds the median of some starts to the table.
func startsAt(ctx context.Context, s *subject, keys int, delay time.Duration, t *table) error {
	var took []float64
	calls := 0
	for range 5 {
		s.fault.ResetCounters()
		s.fault.DelayAll(delay)
		d, err := s.serve(ctx)
		calls = s.fault.TotalCalls()
		s.fault.DelayAll(0)
		if err != nil {
			return err
		}
		if err := s.stop(); err != nil {
			return err
		}
		took = append(took, milliseconds(d))
	}
	var bound *measure.Limit
	if keys == 20 && delay == 20*time.Millisecond {
		bound = measure.Below(1200)
	}
	name := fmt.Sprintf("start to first good Status, %s, %s per call", counted(keys, "key"), delay)
	t.Figure(name, measure.Median(took), "ms", bound)
	t.Figure(name+": PKCS#11 calls", float64(calls), "calls", nil)
	return nil
}

// startUp starts the plugin again and again, and tells the median from the start of the process to the first Status
// that is ok.
func startUp(ctx context.Context, s *subject, t *table) error {
	const starts = 9
	var took []float64
	for range starts {
		d, err := s.restart(ctx)
		if err != nil {
			return err
		}
		took = append(took, milliseconds(d))
	}
	t.Figure("start to first answer, SoftHSM, "+s.profile, measure.Median(took), "ms", measure.Below(300))
	return nil
}

// makeKeys adds n keys to the ring in a process of its own.
func (w *rig) makeKeys(ctx context.Context, dir string, token *softhsm.Token, n int) error {
	child, err := proc.Start(proc.Spec{
		Name: "keys", Path: w.self, Env: token.Env(), Log: filepath.Join(dir, "keys.log"),
		Args: append([]string{"-role", "keys", "-keys", fmt.Sprint(n)}, tokenArgs("", token)...),
	})
	if err != nil {
		return err
	}
	select {
	case <-child.Done():
	case <-ctx.Done():
		child.Kill()
		return ctx.Err()
	}
	if err := child.Err(); err != nil {
		return fmt.Errorf("making keys: %w\n%s", err, child.Tail(5))
	}
	return nil
}

// runKeys is that process.
func runKeys(o *options) error {
	ctx := pkcs11.New(o.module)
	if ctx == nil {
		return errors.New("the module does not load")
	}
	if err := ctx.Initialize(); err != nil {
		return err
	}
	defer ctx.Finalize() //nolint:errcheck // the process ends
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return err
	}
	session, err := ctx.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	pin, err := (&softhsm.Token{PINFile: o.pinFile}).PIN()
	if err != nil {
		return err
	}
	if err := ctx.Login(session, pkcs11.CKU_USER, pin); err != nil {
		return err
	}
	for i := range o.keys {
		id, err := envelope.NewCKAID(time.Now().Add(-time.Duration(i) * time.Hour))
		if err != nil {
			return err
		}
		if _, err := ctx.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, p11test.AESKey(ringName, id)); err != nil {
			return err
		}
	}
	return nil
}
