package hardening

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// costTurn is how long one plugin is asked before it is the next one's turn.
const costTurn = 100 * time.Millisecond

// measured are plugins on one token that differ in their audit trail alone.
type measured struct {
	name   string
	client kmsapi.KeyManagementServiceClient
	took   []time.Duration
	rounds []float64 // operations per second, by round
}

// BenchmarkAuditCost asks plugins without an audit trail, with one and with a required one, in turns, with 1 and with 8
// clients. docs/audit.md has what came of it:
//
//	go test -run '^$' -bench AuditCost -benchtime 60x ./test/hardening
func BenchmarkAuditCost(b *testing.B) {
	dir := b.TempDir()
	token, err := softhsm.New(b.Context(), filepath.Join(dir, "softhsm"), "k8s", "")
	if err != nil {
		b.Fatal(err)
	}
	var all []*measured
	for i, trail := range []struct{ name, line string }{
		{"off", `audit: {path: ""}`}, {"on", "audit: {path: $0}"}, {"required", "audit: {path: $0, required: true}"},
	} {
		p, err := plugin.New(plugin.Options{Bin: program, Dir: filepath.Join(dir, fmt.Sprint(i)), Token: token, Extra: "probeInterval: 10m"})
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, &measured{name: trail.name, client: startMeasured(b, p, i == 0, trail.line)})
	}
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d clients", clients), func(b *testing.B) {
			for range b.N {
				for _, m := range all {
					m.turn(b, clients)
				}
			}
			for _, m := range all {
				slices.Sort(m.took)
				slices.Sort(m.rounds)
				b.ReportMetric(float64(m.took[len(m.took)/2].Microseconds()), m.name+"-p50-µs")
				b.ReportMetric(m.rounds[len(m.rounds)/2], m.name+"-ops/s")
				m.took, m.rounds = nil, nil
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// startMeasured gives the plugin this line about its audit trail ($0: the path), makes the key if it is the first, and starts.
func startMeasured(b *testing.B, p *plugin.Plugin, first bool, line string) kmsapi.KeyManagementServiceClient {
	b.Helper()
	config, err := os.ReadFile(p.Config())
	if err == nil {
		line = strings.Replace(line, "$0", strconv.Quote(p.AuditLog()), 1)
		config = regexp.MustCompile(`(?m)^audit:.*$`).ReplaceAllLiteral(config, []byte(line))
		err = os.WriteFile(p.Config(), config, 0o600)
	}
	if err == nil && first {
		_, err = p.CreateKey(b.Context())
	}
	if err == nil {
		_, err = p.Start(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Kill)
	conn, err := grpc.NewClient("unix://"+p.Socket(), grpc.WithAuthority("localhost"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return kmsapi.NewKeyManagementServiceClient(conn)
}

// turn has the clients encrypt for a while.
func (m *measured) turn(b *testing.B, clients int) {
	b.Helper()
	start := time.Now()
	took := make([][]time.Duration, clients)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for time.Since(start) < costTurn {
				began := time.Now()
				if _, err := m.client.Encrypt(b.Context(), &kmsapi.EncryptRequest{Plaintext: make([]byte, 32), Uid: "5f2c0000-0000-4000-8000-000000000000"}); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	running.Wait()
	lasted, before := time.Since(start).Seconds(), len(m.took)
	m.took = slices.Concat(m.took, slices.Concat(took...))
	m.rounds = append(m.rounds, float64(len(m.took)-before)/lasted)
}
