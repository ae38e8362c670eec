// Package manifests holds what `hsm-kms manifests` prints against a real kube-apiserver (build tag e2e): it loads the
// EncryptionConfigurations, and admits the static pod. What needs no API server is tested in
// the package manifests of the program. `make e2e` runs it.
package manifests
