package hardening

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"
)

// podLimit is the memory limit of manifests static-pod.
const podLimit = 256 << 20

// halfSent are requests that are begun on one connection, as many as there may be, and not ended: frames of DATA, n of size
// bytes each, of a message that has one byte more.
func halfSent(n, size int) func(int) [][]byte {
	return func(int) [][]byte {
		parts := [][]byte{[]byte(preface)}
		prefix := binary.BigEndian.AppendUint32([]byte{0}, uint32(n*size+1)) // as gRPC frames a message
		for stream := uint32(1); stream < 2*512; stream += 2 {
			parts = append(parts, headers(stream), frame(0, 0, stream, prefix), bytes.Repeat(frame(0, 0, stream, make([]byte, size)), n))
		}
		return parts
	}
}

// The memory of half-sent requests is bounded over all connections, below the limit of the pod, and a client that asks is served
// meanwhile: the API server that was there before, and one that connects again.
func TestHalfSentRequestsStayBelowThePodsLimit(t *testing.T) {
	t.Parallel()
	for name, parts := range map[string]func(int) [][]byte{
		"headers alone":    halfSent(0, 0),
		"much data":        halfSent(4, 8<<10),
		"frames of 1 byte": halfSent(1000, 1),
	} {
		t.Run(name, func(t *testing.T) {
			w := newRig(t, options{})
			client := w.client()
			if err := once(w.within(patience), client); err != nil {
				t.Fatal(err)
			}
			most := 0.0
			calls, slowest, err := w.during(client, func(ctx context.Context) {
				w.floodOf(ctx, 40, 5*time.Second, parts)
				most = w.gauge("hsm_kms_process_resident_memory_bytes")
				if err := once(w.within(3*time.Second), w.client()); err != nil {
					t.Errorf("a new connection: %v", err)
				}
			})
			t.Logf("%d calls, the slowest took %s; %.0f MiB resident at the end of the flood", calls, slowest, most/(1<<20))
			if err != nil {
				t.Errorf("the slowest of %d calls took %s: %v", calls, slowest, err)
			}
			if most > podLimit {
				t.Errorf("the plugin has grown to %.0f MiB", most/(1<<20))
			}
		})
	}
}

// More connections than there may be, of an allowed peer, established and idle, do not keep the API server out, and the log
// says what had to go.
func TestIdleConnectionsLetANewOneIn(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{})
	for range 60 {
		var dialer net.Dialer
		conn, err := dialer.DialContext(t.Context(), "unix", w.plugin.Socket())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(preface)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 9)); err != nil { // the server's settings: it is established
			t.Fatal(err)
		}
	}
	for range 5 {
		if err := once(w.within(3*time.Second), w.client()); err != nil {
			t.Errorf("a new connection: %v", err)
		}
	}
	if log := read(t, w.plugin.Log()); !strings.Contains(log, "a connection was closed to make room") || !strings.Contains(log, "it had no request answered") {
		t.Errorf("the log does not say so:\n%s", log)
	}
}
