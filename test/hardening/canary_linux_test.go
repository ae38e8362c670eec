package hardening

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	kmsapi "k8s.io/kms/apis/v2"
)

// canaries are DEKs of 32 bytes: a mark of 24 that only this test has, and the number of the DEK.
const (
	markSize = 24
	dekSize  = markSize + 8
	deks     = 3000
	// mostLeft is how many copies are taken for the module's own, for gRPC's buffer of what it writes to the socket, and for
	// what the last requests left on a stack. Their number does not grow with that of the requests; without
	// wiping our buffers it is hundreds. Encrypt requests as gRPC received them are not among them: that memory is gRPC's,
	// and not ours to wipe (SECURITY.md).
	mostLeft = 40
	// receivedEnd is what follows the plaintext in a received request: field 2 of EncryptRequest.
	receivedEnd = "\x12\x08" + requestUID
	requestUID  = "canaries"
)

// TestCanaries puts DEKs and a PIN that can be found through the plugin, and looks for them.
func TestCanaries(t *testing.T) {
	t.Parallel()
	pin := "canary" + rand.Text()
	w := newRig(t, options{pin: pin, extra: "probeInterval: 1s\nlogging: {level: debug}"})
	mark := make([]byte, markSize)
	_, _ = rand.Read(mark) // never fails
	w.traffic(mark)

	places := map[string]string{"log": read(t, w.plugin.Log()), "metrics": w.metrics()}
	err := filepath.WalkDir(filepath.Join(w.dir, "plugin"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() { // state, audit trail, log
			places[path] = read(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(places[w.plugin.AuditLog()], `"Decrypt"`) || !strings.Contains(places["log"], "request failed") {
		t.Error("the audit trail or the log has nothing of the traffic: this test proves nothing")
	}
	for place, text := range places {
		for what, secret := range map[string][]byte{"PIN": []byte(pin), "DEK": mark} {
			if form := found(text, secret); form != "" {
				t.Errorf("a %s is in %s, as %s", what, place, form)
			}
		}
	}
	w.searchMemory(pin, mark)
}

// traffic encrypts and decrypts each DEK, has some requests fail, and waits until all probes of that time are over.
func (w *rig) traffic(mark []byte) {
	w.t.Helper()
	client, ctx := w.client(), w.within(patience)
	for i := range uint64(deks) {
		if i%100 == 0 {
			ctx = w.within(patience)
		}
		dek := binary.BigEndian.AppendUint64(bytes.Clone(mark), i)
		sealed, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: dek, Uid: requestUID})
		if err != nil {
			w.t.Fatal(err)
		}
		request := &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId, Annotations: sealed.Annotations, Uid: requestUID}
		opened, err := client.Decrypt(ctx, request)
		if err != nil || !bytes.Equal(opened.Plaintext, dek) {
			w.t.Fatalf("Decrypt gave another DEK: %v", err)
		}
		if i%100 == 0 {
			request.Ciphertext[len(request.Ciphertext)-1] ^= 1
			if _, err := client.Decrypt(ctx, request); err == nil {
				w.t.Fatal("a changed ciphertext was opened")
			}
			if _, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: dek, KeyId: sealed.KeyId}); err == nil {
				w.t.Fatal("a DEK was opened")
			}
		}
	}
}

// found names the form in which text holds the secret; "" when it does not.
func found(text string, secret []byte) string {
	forms := map[string]string{
		"itself": string(secret), "hex": hex.EncodeToString(secret),
		"base64": base64.StdEncoding.EncodeToString(secret[:len(secret)/3*3]),
	}
	// As a number list (%v of a []byte).
	forms["numbers"] = strings.Trim(fmt.Sprint(secret), "[]")
	for name, form := range forms {
		if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
			return name
		}
	}
	return ""
}

// searchMemory looks at all that the process can write to: what a core file would hold.
func (w *rig) searchMemory(pin string, mark []byte) {
	w.t.Helper()
	if os.Geteuid() != 0 {
		w.t.Log("NOT CHECKED: the memory, which only root may read")
		return
	}
	left, pins, size, bare, encoded, received := map[uint64]bool{}, 0, 0, 0, 0, 0
	for region := range w.memory() {
		size += len(region)
		pins += bytes.Count(region, []byte(pin))
		for at := 0; ; {
			next := bytes.Index(region[at:], mark)
			if next < 0 || len(region) < at+next+dekSize {
				break
			}
			at += next
			left[binary.BigEndian.Uint64(region[at+markSize:])] = true
			field1 := bytes.HasSuffix(region[:at], []byte{0x0a, dekSize}) // of EncryptRequest and DecryptResponse
			switch {
			case field1 && bytes.HasPrefix(region[at+dekSize:], []byte(receivedEnd)):
				received++
			case field1:
				encoded++
			default:
				bare++
			}
			at += dekSize
		}
	}
	w.t.Logf("%d MiB of memory: the PIN %d times; %d of %d DEKs, %d times in a received request, %d times in an answer and %d times bare", size>>20, pins, len(left), deks, received, encoded, bare)
	if size < 1<<20 {
		w.t.Error("that is not the whole memory")
	}
	if pins > 0 {
		w.t.Errorf("the PIN is in the memory %d times", pins)
	}
	if bare+encoded > mostLeft {
		w.t.Errorf("there are %d copies of DEKs in the memory, want at most %d", bare+encoded, mostLeft)
	}
}

// memory goes over all writable memory of the plugin (proc_pid_maps(5), proc_pid_mem(5)).
func (w *rig) memory() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		pid := w.plugin.Process().PID()
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			w.t.Fatal(err)
		}
		defer mem.Close()
		for line := range strings.Lines(read(w.t, fmt.Sprintf("/proc/%d/maps", pid))) {
			var from, to uint64
			var mode string
			if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
				w.t.Fatal(err)
			}
			if !strings.HasPrefix(mode, "rw") {
				continue
			}
			data := make([]byte, to-from)
			n, _ := mem.ReadAt(data, int64(from)) // an error: a part of it is gone meanwhile
			if !yield(data[:n]) {
				return
			}
		}
	}
}
