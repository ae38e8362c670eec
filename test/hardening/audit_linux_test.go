package hardening

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// checked is what audit verify says of a trail, by its JSON.
type checked struct {
	Records, Operations, Recoveries int
	OK                              bool
	Lost                            int
	End, Reason                     string
}

// verify runs the command over all files of the trail.
func (w *rig) verify(path string) checked {
	w.t.Helper()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := exec.CommandContext(w.within(patience), program, append([]string{"audit", "verify", "-o", "json"}, files...)...).Output() //nolint:gosec // our own
	var c checked
	if jsonErr := json.Unmarshal(out, &c); jsonErr != nil {
		w.t.Fatalf("audit verify %v: %v, %v\n%s", files, err, jsonErr, out)
	}
	return c
}

// smallDisk is a file system of 64 KiB, on which one file fills all but some of the room.
func smallDisk(t *testing.T) (dir string, fill, free func()) {
	t.Helper()
	dir = filepath.Join(shortDir(t), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fill, free = smallDiskAt(t, dir)
	return dir, fill, free
}

// smallDiskAt is a smallDisk on a folder that is there.
func smallDiskAt(t *testing.T, dir string) (fill, free func()) {
	t.Helper()
	err := unix.Mount("none", dir, "tmpfs", 0, "size=64k,mode=0700")
	if err != nil {
		notChecked(t, "a file system of its own cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	fill = func() {
		f, err := os.Create(ballast)
		if err == nil {
			_, err = io.Copy(f, strings.NewReader(strings.Repeat("x", 1<<20)))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
		_ = f.Close()
	}
	return fill, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that is full stops nobody by default: it is said and counted, and the trail tells afterwards how many operations it
// lacks. With audit.required it stops Encrypt and Decrypt, and Status not; and they go on when there is room.
func TestFullAuditDisk(t *testing.T) {
	t.Parallel()
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprintf("required %t", required), func(t *testing.T) {
			t.Parallel()
			dir, fill, free := smallDisk(t)
			path := filepath.Join(dir, "audit.log")
			w := newRig(t, options{audit: path, audits: fmt.Sprintf("required: %t", required)})
			client, ctx := w.client(), w.within(2*patience)
			served, failed := 0, 0
			ask := func() error {
				err := once(ctx, client) // Status, Encrypt, Decrypt
				switch {
				case err == nil:
					served += 2
				case status.Code(err) != codes.Unavailable:
					t.Errorf("it is neither served nor refused: %v", err)
				case strings.Contains(err.Error(), "encrypting"):
					failed++
				default: // the Decrypt after it
					served, failed = served+1, failed+1
				}
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			fill()
			for range 50 { // more than what is left of the last page takes
				if err := ask(); err != nil && !required {
					t.Fatal(err)
				}
			}
			if (failed > 0) != required || w.gauge("hsm_kms_audit_failing") != 1 || w.gauge("hsm_kms_audit_lost_operations_total") < 1 {
				t.Errorf("with a full disk %d failed; the metrics:\n%s", failed, w.metrics())
			}
			free()
			eventually(t, ask)
			eventually(t, func() error {
				if w.gauge("hsm_kms_audit_failing") != 0 {
					return errors.New("it is failing still")
				}
				return nil
			})
			if log := read(t, w.plugin.Log()); strings.Count(log, "audit trail cannot be written") != 1 || strings.Count(log, "is written again") != 1 {
				t.Error("the log does not say it once")
			}
			if err := w.plugin.Stop(); err != nil {
				t.Fatal(err)
			}
			if c := w.verify(path); !c.OK || c.Lost < 1 || c.Recoveries < 1 || c.Operations+c.Lost != served+failed || c.End != "ended" {
				t.Errorf("%d served, %d failed, and the trail says %+v", served, failed, c)
			}
		})
	}
}

// The file is rotated by size, by renaming it and a SIGHUP, and by copying and truncating it: in one chain, whatever comes
// in meanwhile.
func TestAuditRotation(t *testing.T) {
	t.Parallel()
	for name, rotate := range map[string]func(w *rig, path string, i int){
		"by size": func(*rig, string, int) {},
		"rename and SIGHUP": func(w *rig, path string, i int) {
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, 9-i)); err != nil {
				w.t.Fatal(err)
			}
			if err := syscall.Kill(w.plugin.Process().PID(), syscall.SIGHUP); err != nil {
				w.t.Fatal(err)
			}
			eventually(w.t, func() error { _, err := os.Stat(path); return err })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRig(t, options{audits: "maxSizeMB: 1"})
			path := w.plugin.AuditLog()
			client, ctx := w.client(), w.within(2*patience)
			served := 0
			for i := range 3 {
				for range 600 { // each time 600 KiB
					if err := once(ctx, client); err != nil {
						t.Fatal(err)
					}
					served += 2
				}
				rotate(w, path, i)
			}
			if err := w.plugin.Stop(); err != nil {
				t.Fatal(err)
			}
			files, _ := filepath.Glob(path + "*")
			if c := w.verify(path); !c.OK || c.Operations != served || c.Recoveries != 0 || len(files) < 2 {
				t.Errorf("%d served, and %d files say %+v", served, len(files), c)
			}
		})
	}
	t.Run("copy and truncate", func(t *testing.T) {
		t.Parallel()
		w := newRig(t, options{})
		path := w.plugin.AuditLog()
		ask := func() {
			if err := once(w.within(patience), w.client()); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		if err := os.WriteFile(path+".1", []byte(read(t, path)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		ask()
		if err := w.plugin.Stop(); err != nil {
			t.Fatal(err)
		}
		if c := w.verify(path); !c.OK || c.Operations != 4 || c.Recoveries != 1 {
			t.Errorf("%+v", c)
		}
	})
}
