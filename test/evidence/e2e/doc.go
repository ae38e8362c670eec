// Package e2e holds the end-to-end tests of etcd report, verify and get (build tag e2e): bin/hsm-kms as its user runs
// it, with a SoftHSM token, against a real etcd and kube-apiserver whose EncryptionConfiguration changes on the way, and
// against snapshots that etcdctl saves. They know the documented contract only. `make e2e` runs them.
package e2e
