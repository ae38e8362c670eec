// Package kmsplugin is the KMS v2 service that kube-apiserver calls: Status, Encrypt, Decrypt, and the server around
// them. It serves a key ring (envelope.Ring) and never sees PKCS#11.
//
// The package itself answers requests: deadlines, codes, recovery from panics, drain. Its parts have packages of their own:
// health (what Status says, and why), problem (codes and words), socket, systemd, peers (who may connect), limits (how many
// connections and requests), audit and metrics (who is told). A Plugin is run once; its methods may be called meanwhile from
// any number of goroutines.
//
// It depends on envelope, on its parts health, problem, systemd, peers, limits, hold and hold/holdfile, and on hint and throttle.
//
//	plugin := kmsplugin.New(kmsplugin.Options{Ring: ring, Logger: logger, Proven: proven})
//	listener, err := socket.Listen(socket.Config{Path: "/run/hsm-kms/kms.sock"})
//	...
//	defer listener.Release()
//	err = plugin.Run(ctx, listener) // until ctx ends; drains
package kmsplugin
