package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// object is a JSON object; kube-apiserver's configuration files are YAML, of which JSON is a part.
type object = map[string]any

// writeFiles writes the token file, the service-account key and the EncryptionConfiguration.
func (c *Cluster) writeFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the service-account key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the service-account key: %w", err)
	}
	config, err := json.MarshalIndent(encryptionConfig(c.opts), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the EncryptionConfiguration: %w", err)
	}
	for name, data := range map[string][]byte{
		"sa.pem":          pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv":      []byte(c.token + ",admin,admin,system:masters\n"),
		"encryption.yaml": config,
	} {
		if err := os.WriteFile(c.path(name), data, 0o600); err != nil {
			return fmt.Errorf("writing a file of the API server: %w", err)
		}
	}
	return nil
}

// encryptionConfig has the KMS provider first, so that it encrypts, and identity last, so that what was written in
// plain before can still be read.
func encryptionConfig(opts Options) object {
	kms := object{"apiVersion": "v2", "name": ProviderName, "endpoint": "unix://" + opts.Socket, "timeout": "3s"}
	return object{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "EncryptionConfiguration",
		"resources": []object{{
			"resources": opts.Resources,
			"providers": []object{{"kms": kms}, {"identity": object{}}},
		}},
	}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// FreePorts finds n ports that nobody listens on. They are taken from below the range that kernels give to outgoing
// connections, where one could take the port between this look and the listen, or while the API server restarts.
func FreePorts(n int) ([]int, error) {
	const low, high = 20000, 32000
	var ports []int
	for try := 0; len(ports) < n && try < 1000; try++ {
		port := low + mathrand.IntN(high-low) //nolint:gosec // not a secret
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			continue
		}
		defer l.Close() // all are held until the last is found, so that they differ
		if reserve(port) {
			ports = append(ports, port)
		}
	}
	if len(ports) < n {
		return nil, fmt.Errorf("looking for %d free ports on 127.0.0.1 between %d and %d: found %d", n, low, high, len(ports))
	}
	return ports, nil
}

// reserve keeps a port for this process until it ends: between the look whether it is free and the program that listens
// on it, another test must not find it free too. What is kept is a name in Linux's abstract socket namespace, which all
// processes share and which leaves no file behind.
func reserve(port int) bool {
	if runtime.GOOS != "linux" {
		return true
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return true // nothing can be kept, and the port is free as far as anyone knows
	}
	unix.CloseOnExec(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@hsm-kms-test-port-" + strconv.Itoa(port)}); err != nil {
		_ = unix.Close(fd) // somebody else's
		return false
	}
	return true // the descriptor stays open on purpose
}
