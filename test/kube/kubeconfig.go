package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// WriteKubeconfig writes a kubeconfig of an administrator of this cluster: its API server is the one that is named, and
// the certificates of the others, which are on the same etcd, are trusted too. All must have been started once.
func (c *Cluster) WriteKubeconfig(path string, others ...*Cluster) error {
	return c.WriteKubeconfigOf(path, c.token, others...)
}

// WriteKubeconfigOf does so for the one who has the bearer token.
func (c *Cluster) WriteKubeconfigOf(path, token string, others ...*Cluster) error {
	var certificates []byte
	for _, it := range append([]*Cluster{c}, others...) {
		if it.token != c.token {
			return errors.New("writing a kubeconfig: the API servers are not on one etcd")
		}
		data, err := os.ReadFile(it.path("certs/apiserver.crt"))
		if err != nil {
			return fmt.Errorf("reading the API server's certificate: %w", err)
		}
		certificates = append(certificates, data...)
	}
	config, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []object{{"name": "test", "cluster": object{"server": c.URL(), "certificate-authority-data": certificates}}},
		"users":    []object{{"name": "test", "user": object{"token": token}}},
		"contexts": []object{{"name": "test", "context": object{"cluster": "test", "user": "test"}}},
	})
	if err != nil {
		return fmt.Errorf("encoding the kubeconfig: %w", err)
	}
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return nil
}
