package hardening

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// holdings are what the plugin and its workers hold.
type holdings struct {
	workers, descriptors, ofWorkers, threads, files int
	resident, residentOfWorkers                     float64 // MiB
}

// TestReplacements: after the library has died a hundred times, the plugin holds what it held after the first time. No
// request has failed for it.
func TestReplacements(t *testing.T) {
	t.Parallel()
	const rounds = 100
	w := newRig(t, options{faulty: true})
	client := w.client()
	var first holdings
	for i := 1; i <= rounds; i++ {
		w.faults.Die("C_EncryptInit", faultp11.Segfault).Once()
		if _, err := client.Encrypt(w.within(patience), &kmsapi.EncryptRequest{Plaintext: make([]byte, 32), Uid: strconv.Itoa(i)}); err != nil {
			t.Fatalf("replacement %d: %v", i, err)
		}
		eventually(t, func() error {
			if n := w.gauge(`hsm_kms_worker_deaths_total{token="softhsm"}`); n != float64(i) {
				return fmt.Errorf("%v deaths after replacement %d", n, i)
			}
			return nil
		})
		if i == 1 {
			first = w.holds()
			t.Logf("after the first: %+v", first)
		}
	}
	var last holdings
	eventually(t, func() error {
		last = w.holds()
		switch {
		case last.workers != first.workers, last.files != first.files:
			return fmt.Errorf("after %d replacements: %+v, after the first %+v", rounds, last, first)
		case last.descriptors > first.descriptors+8, last.ofWorkers > first.ofWorkers+8, last.threads > first.threads+16:
			return fmt.Errorf("after %d replacements: %+v, after the first %+v", rounds, last, first)
		case last.resident > first.resident+16, last.residentOfWorkers > first.residentOfWorkers+16:
			return fmt.Errorf("after %d replacements: %+v, after the first %+v", rounds, last, first)
		}
		return nil
	})
	t.Logf("after %d: %+v", rounds, last)
	if n := w.gauge(`hsm_kms_worker_starts_total{token="softhsm"}`); n != float64(rounds+1) {
		t.Errorf("%v workers were started", n)
	}
	if n := w.gauge(`hsm_kms_worker_resident_memory_bytes{token="softhsm"}`); n < 1<<20 {
		t.Errorf("the workers have %v bytes of memory, by the metrics", n)
	}
}

// holds counts what /proc and stateDir show.
func (w *rig) holds() (h holdings) {
	w.t.Helper()
	pid := w.plugin.Process().PID()
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(w.plugin.Config()), "state"))
	if err != nil {
		w.t.Fatal(err)
	}
	h.files = len(entries)
	held, err := proc.HeldBy(pid)
	if err != nil {
		w.t.Fatal(err)
	}
	h.descriptors, h.threads, h.resident = held.Files, held.Threads, held.AnonMiB
	for _, child := range proc.Children(pid) {
		held, err := proc.HeldBy(child)
		if err != nil {
			continue // it has ended
		}
		h.workers++
		h.ofWorkers += held.Files
		h.threads += held.Threads
		h.residentOfWorkers += held.AnonMiB
	}
	return h
}
