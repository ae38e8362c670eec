// Package cluster installs hsm-kms as users do, on nodes that run a real systemd, kubelet and kubeadm: `make cluster`. The
// commands are those of docs/install.md, taken from the document; what this machine forces to be different is printed.
//
// A node is a process tree in namespaces of its own (mount, pid, network, uts, ipc, cgroup). Its first process is a copy
// of the test binary, which builds the root file system and becomes systemd. The kernel ends a node with the process that
// started it, SIGKILL included, and with it go all of its mounts and namespaces; folders and empty cgroups that a killed
// run left are removed by the next one. Nothing is mounted, installed or configured outside a node.
//
// Needed: Linux with cgroup v1 (the nodes' controllers are taken from there; cgroup v2 alone was never tried), root,
// mmdebstrap, and the Go module proxy for the first run. The build tag e2e and HSM_KMS_CLUSTER=1 switch it on.
package cluster
