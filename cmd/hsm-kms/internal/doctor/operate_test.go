package doctor

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
	"strings"
	"testing"
	"time"
)

// kubeUser is one of a kubeconfig, with a certificate that ends then.
func kubeUser(t *testing.T, ends time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: ends.Add(-time.Hour), NotAfter: ends}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return fmt.Sprintf(`{"client-certificate-data":%q,"client-key-data":%q}`, encode("CERTIFICATE", certificate), encode("PRIVATE KEY", private))
}

// The identity of operate is looked at where it is, and before it ends.
func TestOperate(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, c := range map[string]struct {
		user   string // empty: there is no file
		mode   os.FileMode
		result Result // empty: nothing is said
		says   string
		hint   string
	}{
		"none":           {},
		"good":           {kubeUser(t, now.Add(365*24*time.Hour)), 0o600, Pass, "ends at", ""},
		"ends soon":      {kubeUser(t, now.Add(29*24*time.Hour)), 0o600, Warn, "ends at", "restart hsm-kms operate"},
		"has ended":      {kubeUser(t, now.Add(-time.Second)), 0o600, Fail, "ended at", "restart hsm-kms operate"},
		"a token":        {"{}", 0o600, Pass, "no client certificate", ""},
		"others read it": {kubeUser(t, now.Add(365*24*time.Hour)), 0o640, Fail, "mode 0640", "renew the certificate"},
		"no kubeconfig":  {`{`, 0o600, Fail, "reading the kubeconfig", "…"},
		"no certificate": {`{"client-certificate-data":"eA==","client-key-data":"eA=="}`, 0o600, Fail, "using the kubeconfig", "…"},
	} {
		path := filepath.Join(t.TempDir(), "operate.kubeconfig")
		if c.user != "" {
			text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
				"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"users":[{"name":"u","user":%s}]}`, c.user)
			if err := os.WriteFile(path, []byte(text), c.mode); err != nil {
				t.Fatal(err)
			}
		}
		d := &doctor{}
		d.operate(path, now)
		switch {
		case c.result == "":
			if len(d.found) != 0 {
				t.Errorf("%s: %+v", name, d.found)
			}
		case len(d.found) != 1 || d.found[0].Result != c.result || !strings.Contains(d.found[0].Detail, c.says) || (d.found[0].Hint == "") != (c.hint == "") || c.hint != "…" && !strings.Contains(d.found[0].Hint, c.hint):
			t.Errorf("%s: %+v", name, d.found)
		}
	}
}
