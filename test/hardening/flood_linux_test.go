package hardening

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// preface is what a client of HTTP/2 begins with, and its settings (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// frame is an HTTP/2 frame (RFC 9113 section 4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))[1:]
	b = append(b, kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// headers opens a request for Decrypt and does not end it (RFC 7541: literal fields without indexing).
func headers(stream uint32) []byte {
	var block []byte
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/v2.KeyManagementService/Decrypt"}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		block = append(block, 0, byte(len(field[0])))
		block = append(block, field[0]...)
		block = append(block, byte(len(field[1])))
		block = append(block, field[1]...)
	}
	return frame(1, 4, stream, block) // HEADERS, END_HEADERS
}

// floods are what one hostile connection sends, with a pause between the parts. The connection then stays open.
func floods() map[string]func(i int) [][]byte {
	return map[string]func(i int) [][]byte{
		"says nothing":   func(int) [][]byte { return nil },
		"half a preface": func(i int) [][]byte { return [][]byte{[]byte(preface[:i%len(preface)])} },
		"byte by byte":   func(int) [][]byte { return bytes.SplitAfter([]byte(preface+preface+preface), nil) },
		"no HTTP/2":      func(int) [][]byte { return [][]byte{bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 1000)} },
		"half-open requests": func(int) [][]byte {
			parts := [][]byte{[]byte(preface)}
			for stream := uint32(1); stream < 2*512; stream += 2 {
				parts = append(parts, headers(stream))
			}
			return [][]byte{bytes.Join(parts, nil)}
		},
		"requests that are reset": func(int) [][]byte { // CVE-2023-44487
			parts := [][]byte{[]byte(preface)}
			for stream := uint32(1); stream < 1000; stream += 2 {
				parts = append(parts, headers(stream), frame(3, 0, stream, make([]byte, 4)))
			}
			return [][]byte{bytes.Join(parts, nil)}
		},
		"pings": func(int) [][]byte {
			return [][]byte{[]byte(preface), bytes.Repeat(frame(6, 0, 0, make([]byte, 8)), 2000)}
		},
		"endless settings": func(int) [][]byte { return [][]byte{[]byte(preface), bytes.Repeat(frame(4, 0, 0, nil), 5000)} },
		"answers not read": func(int) [][]byte { // whole requests, as many as there may be on a connection
			parts := [][]byte{[]byte(preface)}
			message, _ := proto.Marshal(&kmsapi.EncryptRequest{Plaintext: make([]byte, 32)}) // it can be
			for stream := uint32(1); stream < 2*512; stream += 2 {
				body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...) // as gRPC frames it
				parts = append(parts, headers(stream), frame(0, 1, stream, body))                          // DATA, END_STREAM
			}
			return [][]byte{bytes.Join(parts, nil)}
		},
		"endless headers": func(int) [][]byte { // CVE-2023-45288: CONTINUATION without end
			return [][]byte{[]byte(preface), frame(1, 0, 1, nil), bytes.Repeat(frame(9, 0, 1, bytes.Repeat([]byte{0, 1, 'a', 1, 'b'}, 100)), 100)}
		},
	}
}

// Whatever others do on the socket, the calls of the connection that was there before are served, and well within the 3 s
// that kube-apiserver waits. The limits of memory, connections and threads hold meanwhile.
func TestFloodsLeaveTheAPIServerServed(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{})
	client := w.client()
	if err := once(w.within(patience), client); err != nil {
		t.Fatal(err)
	}
	for name, parts := range floods() {
		calls, slowest, err := w.during(client, func(ctx context.Context) { w.flood(ctx, parts) })
		t.Logf("%s: %d calls, the slowest took %s; %.0f MiB resident", name, calls, slowest, w.gauge("hsm_kms_process_resident_memory_bytes")/(1<<20))
		if err != nil || calls == 0 {
			t.Errorf("%s: the slowest of %d calls took %s: %v", name, calls, slowest, err)
		}
	}
	calls, slowest, err := w.during(client, w.bigMessages)
	t.Logf("big messages: %d calls, the slowest took %s", calls, slowest)
	if err != nil || calls == 0 {
		t.Errorf("big messages: the slowest of %d calls took %s: %v", calls, slowest, err)
	}
	if resident := w.gauge("hsm_kms_process_resident_memory_bytes"); resident > 256<<20 { // the limit of manifests static-pod
		t.Errorf("the plugin has grown to %.0f MiB", resident/(1<<20))
	}
	if dropped := w.gauge("hsm_kms_connections_dropped_total"); dropped < 500 {
		t.Errorf("%.0f connections were dropped: the floods were no floods", dropped)
	}
	if refused := w.gauge("hsm_kms_peers_refused_total"); refused > 0 { // all are of our own uid
		t.Errorf("%.0f peers count as refused, and an alert would say so", refused)
	}
	// With the floods gone, a client that was not there before is served too.
	eventually(t, func() error { _, err := w.plugin.Status(w.within(patience)); return err })
	if err := once(w.within(patience), w.client()); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	if n := bytes.Count([]byte(read(t, w.plugin.Log())), []byte("\n")); n > 30 {
		t.Errorf("the floods made %d log lines", n)
	}
}

// An API server that connects again gets in, and is served within the 3 s that it waits, while others hold more connections
// open than there may be, and say nothing or never enough.
func TestSlowClientsLetANewOneIn(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{})
	for i := range 100 {
		var dialer net.Dialer
		conn, err := dialer.DialContext(t.Context(), "unix", w.plugin.Socket())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(preface[:i%24])) // dropped already, perhaps
	}
	for range 5 {
		if err := once(w.within(3*time.Second), w.client()); err != nil {
			t.Errorf("a new connection: %v", err)
		}
	}
}

// once is what an API server asks for: Status, Encrypt and Decrypt.
func once(ctx context.Context, client kmsapi.KeyManagementServiceClient) error {
	if st, err := client.Status(ctx, &kmsapi.StatusRequest{}); err != nil || st.Healthz != "ok" {
		return fmt.Errorf("status %v: %w", st, err)
	}
	dek := bytes.Repeat([]byte{7}, 32)
	sealed, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: dek})
	if err != nil {
		return fmt.Errorf("encrypting: %w", err)
	}
	opened, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId, Annotations: sealed.Annotations})
	if err == nil && !bytes.Equal(opened.Plaintext, dek) {
		err = fmt.Errorf("another DEK came back: %x", opened.Plaintext)
	}
	return err
}

// during calls until the flood is over.
func (w *rig) during(client kmsapi.KeyManagementServiceClient, flood func(context.Context)) (calls int, slowest time.Duration, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	over := make(chan struct{})
	go func() { defer close(over); flood(ctx) }()
	for {
		start := time.Now()
		err := once(ctx, client)
		slowest = max(slowest, time.Since(start))
		calls++
		if err != nil {
			cancel()
			<-over
			return calls, slowest, err
		}
		select {
		case <-over:
			return calls, slowest, nil
		default:
		}
	}
}

// flood opens at least 400 connections that each send the parts, from 20 goroutines, and closes them when all are there.
func (w *rig) flood(ctx context.Context, parts func(i int) [][]byte) {
	w.floodOf(ctx, 400, 200*time.Millisecond, parts)
}

// floodOf is flood with at least so many connections, each of which writes for as long as patient.
func (w *rig) floodOf(ctx context.Context, connections int, patient time.Duration, parts func(i int) [][]byte) {
	var mu sync.Mutex
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			_ = conn.Close()
		}
	}()
	start := time.Now()
	var running sync.WaitGroup
	for worker := range 20 {
		running.Go(func() {
			for i := worker; ctx.Err() == nil && (i < connections || time.Since(start) < 300*time.Millisecond); i += 20 {
				var dialer net.Dialer
				conn, err := dialer.DialContext(ctx, "unix", w.plugin.Socket())
				if err != nil {
					continue
				}
				_ = conn.SetDeadline(time.Now().Add(patient)) // nobody reads what is answered: it backs up
				for _, part := range parts(i) {
					if _, err := conn.Write(part); err != nil {
						break // dropped, or full
					}
				}
				mu.Lock()
				open = append(open, conn)
				mu.Unlock()
			}
		})
	}
	running.Wait()
}

// bigMessages sends requests of 10 MiB on connections of their own.
func (w *rig) bigMessages(ctx context.Context) {
	var running sync.WaitGroup
	for range 8 {
		client := w.client()
		running.Go(func() {
			for range 20 {
				_, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: make([]byte, 10<<20), KeyId: "k"})
				if code := status.Code(err); code != codes.ResourceExhausted {
					w.t.Errorf("a request of 10 MiB: %v", err)
				}
			}
		})
	}
	running.Wait()
}

// gauge is the value of a metric without labels.
func (w *rig) gauge(name string) float64 {
	w.t.Helper()
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(w.metrics())
	if match == nil {
		w.t.Fatalf("no metric %s", name)
	}
	value, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return value
}
