package kubeapi_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
)

// certificate is one for names that signs itself, and its PEM.
func certificate(t *testing.T, names ...string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: names, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// An API server of a group is trusted if its certificate is for the Service and of the CA that the APIService names, and in no
// other case: requests carry the kubeconfig's identity.
func TestGroupServerIsWhoItSays(t *testing.T) {
	t.Parallel()
	right, ca := certificate(t, "api.wardle.svc")
	wrong, otherCA := certificate(t, "other.wardle.svc")
	for name, tc := range map[string]struct {
		certificate tls.Certificate
		ca          []byte
		says        string // empty: it is accepted
	}{
		"right":          {right, ca, ""},
		"another CA":     {right, otherCA, "certificate"},
		"another name":   {wrong, otherCA, "not api.wardle.svc"},
		"no CA is named": {right, nil, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(http.NotFoundHandler())
			server.TLS = &tls.Config{Certificates: []tls.Certificate{tc.certificate}, MinVersion: tls.VersionTLS12}
			server.StartTLS()
			t.Cleanup(server.Close)
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, "/apiservices") {
					http.NotFound(w, r)
					return
				}
				fmt.Fprintf(w, `{"kind":"List","items":[{"spec":{"group":"example.com","service":{"namespace":"wardle","name":"api"},"caBundle":%q}}]}`, base64.StdEncoding.EncodeToString(tc.ca))
			}))
			t.Cleanup(front.Close)
			cfg := kubeapi.Config{Kubeconfig: kubeconfig(t, "x", front.URL), Servers: []string{front.URL}}
			servers, err := kubeapi.Connect(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			groups, err := kubeapi.ConnectGroups(t.Context(), cfg, servers[0], []string{"example.com=" + server.URL})
			if tc.says == "" {
				if err != nil || len(groups["example.com"]) != 1 {
					t.Errorf("%v, %v", groups, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, %v", groups, err)
			}
		})
	}
}
