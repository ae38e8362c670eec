// Package kmsplugin is the KMS v2 service that kube-apiserver calls: Status, Encrypt, Decrypt, and the server around
// them. It serves a key ring (envelope.Ring) and never sees PKCS#11.
//
// The package itself answers requests: limits, deadlines, codes, recovery, drain. Its parts have packages of their own: health (what Status says, and why), problem (codes and words), socket, systemd,
// peers and conns (who may connect, and how many), audit and metrics (who is told).
//
//	plugin := kmsplugin.New(kmsplugin.Options{Ring: ring, Logger: logger, Proven: proven})
//	listener, err := socket.Listen(socket.Config{Path: "/run/hsm-kms/kms.sock"})
//	...
//	defer listener.Release()
//	err = plugin.Run(ctx, listener) // until ctx ends; drains
package kmsplugin
