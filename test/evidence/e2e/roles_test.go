//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// authority makes certificates, each in NAME.crt and NAME.key of its folder.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.issue(t, "ca")
	return a
}

func (a *authority) issue(t *testing.T, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: a.cert == nil, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if a.cert == nil {
		a.cert, a.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(t, err)
	if template == a.cert {
		a.cert, err = x509.ParseCertificate(der)
		must(t, err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(a.path(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(a.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

// guarded is an etcd that knows its users by their certificates.
func guarded(ctx context.Context, t *testing.T, bin plugin.Programs, a *authority) (url string, root *clientv3.Client) {
	t.Helper()
	for _, name := range []string{"server", "root"} {
		a.issue(t, name)
	}
	ports, err := kube.FreePorts(2)
	must(t, err)
	url, peer := fmt.Sprintf("https://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	etcd, err := proc.Start(proc.Spec{Name: "etcd", Path: bin.Kube.Path("etcd"), Log: a.path("etcd.log"), Args: []string{
		"--name=etcd", "--data-dir=" + a.path("data"), "--log-level=warn", "--unsafe-no-fsync", "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=etcd=" + peer,
		"--client-cert-auth", "--trusted-ca-file=" + a.path("ca.crt"), "--cert-file=" + a.path("server.crt"), "--key-file=" + a.path("server.key"),
	}})
	must(t, err)
	t.Cleanup(func() { _ = etcd.Stop(time.Second) })
	pair, err := tls.LoadX509KeyPair(a.path("root.crt"), a.path("root.key"))
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	root, err = clientv3.New(clientv3.Config{
		Endpoints: []string{url}, Logger: zap.NewNop(), TLS: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12},
	})
	must(t, err)
	t.Cleanup(func() { _ = root.Close() })
	_, err = root.UserAddWithOptions(ctx, "root", "", &clientv3.UserAddOptions{NoPassword: true})
	must(t, err)
	_, err = root.RoleAdd(ctx, "root")
	must(t, err)
	_, err = root.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = root.AuthEnable(ctx)
	must(t, err)
	return url, root
}

// grant is one permission of a role; end empty: of one key, "\x00": without an end.
type grant struct {
	start, end string
	kind       authpb.Permission_Type
}

// Ranges that a client's roles do not let it read are named exactly, and the rest is read, also while etcd is compacted.
func TestRoles(t *testing.T) {
	t.Parallel()
	bin, err := plugin.FindPrograms()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	a := newAuthority(t)
	url, root := guarded(ctx, t, bin, a)
	const secrets = 20_000
	values := fill(ctx, t, root, secrets)
	for _, key := range []string{"/other/secrets/e2e/a", "/registry/pods/e2e/a", "/registry/zebras/e2e/a"} {
		_, err := root.Put(ctx, key, "k8s\x00plain")
		must(t, err)
	}
	report := func(user string, args ...string) (outcome, error) {
		args = append([]string{"etcd", "report", "-o", "json", "--endpoints", url, "--cacert", a.path("ca.crt"), "--cert", a.path(user + ".crt"), "--key", a.path(user + ".key")}, args...)
		out, err := exec.CommandContext(ctx, bin.HSMKMS, args...).Output()
		o := outcome{out: string(out)}
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as exec returns it
			o.code, o.errOut = exit.ExitCode(), string(exit.Stderr)
			return o, nil
		}
		return o, err
	}
	const read, write = authpb.READ, authpb.WRITE
	cases := []struct {
		name       string
		grants     []grant
		objects    int
		unreadable []string
	}{
		{"prefix", []grant{{"/registry/", "/registry0", read}}, secrets + 2, []string{"../registry/", "/registry0.."}},
		{"all", []grant{{"\x00", "\x00", authpb.READWRITE}}, secrets + 2, []string{}},
		{"two-parts", []grant{{"/registry/", "/registry/secrets/", read}, {"/registry/secrets/", "\x00", read}}, secrets + 2, []string{"../registry/"}},
		{"several", []grant{{"/registry/secrets/", "/registry/secrets0", read}, {"/registry/pods/", "/registry/pods0", read}, {"/registry/z", "/registry/zz", write}}, secrets + 1,
			[]string{"../registry/pods/", "/registry/pods0../registry/secrets/", "/registry/secrets0.."}},
		{"keys", []grant{{"/registry/secrets/e2e/000007", "", read}, {"/registry/secrets/e2e/000003", "", read}, {"/registry/z", "\x00", read}, {"/a", "/b", read}}, 3,
			[]string{"../a", "/b../registry/secrets/e2e/000003", `/registry/secrets/e2e/000003\x00../registry/secrets/e2e/000007`, `/registry/secrets/e2e/000007\x00../registry/z`}},
		{"overlapping", []grant{{"/registry/", "/registry/secrets/e2e/000005", read}, {"/registry/p", "/registry/secrets/e2e/000010", read}, {"/registry/secrets", "/registry/secrets/e2e/000002", read}}, 11,
			[]string{"../registry/", "/registry/secrets/e2e/000010.."}},
	}
	for _, c := range append(cases, struct {
		name       string
		grants     []grant
		objects    int
		unreadable []string
	}{name: "nothing", grants: []grant{{"/a", "/b", read}, {"/registry/", "/registry0", write}}}) {
		a.issue(t, c.name)
		_, err := root.UserAddWithOptions(ctx, c.name, "", &clientv3.UserAddOptions{NoPassword: true})
		must(t, err)
		for i, g := range c.grants { // each in a role of its own
			role := fmt.Sprintf("%s-%d", c.name, i)
			_, err = root.RoleAdd(ctx, role)
			must(t, err)
			_, err = root.RoleGrantPermission(ctx, role, g.start, g.end, clientv3.PermissionType(g.kind))
			must(t, err)
			_, err = root.UserGrantRole(ctx, c.name, role)
			must(t, err)
		}
	}
	check := func(name string, objects int, unreadable []string) (followed bool) {
		t.Helper()
		o, err := report(name)
		must(t, err)
		var r struct {
			Objects int
			Sources []struct {
				From       int64
				Unreadable []string
				Notes      []string
			}
		}
		o.want(t, 0).into(t, &r)
		source := r.Sources[0]
		if r.Objects != objects || !slices.Equal(source.Unreadable, unreadable) || strings.Contains(fmt.Sprint(source.Notes), "may not read all keys") != (len(unreadable) > 0) {
			t.Errorf("%s: %d objects, %q, %q; want %d, %q", name, r.Objects, source.Unreadable, source.Notes, objects, unreadable)
		}
		return source.From > 0
	}
	for _, c := range cases {
		check(c.name, c.objects, c.unreadable)
	}
	refused, err := report("nothing")
	must(t, err)
	if refused.want(t, 2); !strings.Contains(refused.errOut, "permission denied") {
		t.Errorf("a client that may read nothing: %q", refused.errOut)
	}
	t.Log("while etcd is compacted: through all, and through several watches that rely on etcd's word")
	disturb(t, root, secrets, values)
	for _, c := range cases[:4] {
		followed := false
		for i := 0; i < 30 && !followed; i++ { // a compaction may miss a reading
			followed = check(c.name, c.objects, c.unreadable)
		}
		if !followed {
			t.Errorf("%s: compaction disturbed nothing", c.name)
		}
	}
}
