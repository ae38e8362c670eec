// Package e2e holds the end-to-end tests (build tag e2e): bin/hsm-kms as its user runs it, with a SoftHSM token, against
// a real etcd and a real kube-apiserver. They know the documented contract only and import nothing of the program.
// `make e2e` runs them.
package e2e
