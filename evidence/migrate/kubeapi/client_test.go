package kubeapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pair makes a certificate that ends then, and its key, in PEM.
func pair(t *testing.T, ends time.Time) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// The end is that of the certificate that is in use: a kubeconfig that was renewed and not read again renews nothing.
func TestExpires(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(name, user string) {
		t.Helper()
		write(name, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
			"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"users":[{"name":"u","user":%s}]}`, user))
	}
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	later := soon.Add(24 * time.Hour)
	renew := func(ends time.Time) {
		t.Helper()
		certificate, key := pair(t, ends)
		write("crt", certificate)
		write("key", key)
		encode := base64.StdEncoding.EncodeToString
		config("inline", fmt.Sprintf(`{"client-certificate-data":%q,"client-key-data":%q}`, encode(certificate), encode(key)))
	}
	config("files", fmt.Sprintf(`{"client-certificate":%q,"client-key":%q}`, path("crt"), path("key")))
	config("none", "{}")
	renew(soon)
	clients := map[string]*Client{}
	for _, name := range []string{"inline", "files", "none"} {
		client, err := Open(Config{Kubeconfig: path(name)})
		if err != nil {
			t.Fatal(err)
		}
		clients[name] = client
	}
	check := func(name string, want time.Time) {
		t.Helper()
		if ends, err := clients[name].Expires(); err != nil || !ends.Equal(want) {
			t.Errorf("%s: %s, %v, want %s", name, ends, err, want)
		}
	}
	for _, name := range []string{"inline", "files"} {
		check(name, soon)
	}
	check("none", time.Time{})
	renew(later)
	check("inline", soon)
	check("files", later)
}
