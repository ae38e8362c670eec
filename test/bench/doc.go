// Command bench measures the figures that hsm-kms promises, as `make bench` does: real processes, a real socket, a real
// PKCS#11 module.
//
// Machines differ, so latency and rate are told as ratios to two measures taken beside them:
//
//   - N, an empty KMS v2 server (grpc.NewServer, no options) in a process of its own on the same kind of socket, asked
//     by the same client: what the protocol costs when nothing is done.
//   - R, the bare PKCS#11 calls in a loop in a process of its own: an Init with its operation (C_EncryptInit and
//     C_Encrypt, C_DecryptInit and C_Decrypt, C_SignInit and C_Sign), one crossing from Go to C for each pair, on the
//     plugin's own key, with the same lengths.
//
// Beside them stand three servers, which are told and not judged (beside.go, usual.go):
//
//   - B, the empty server with the bare calls in its handlers: what it costs merely to do both in one process.
//   - W, the same with the module in a worker process: what it costs to be safe from the module, and nothing else.
//   - U, a plugin built the usual way on crypto11, for profile aes-gcm.
//
// They take turns in slices of a fraction of a second, and every ratio is made within one round of turns;
// what is told is the median over the rounds. So other work on the machine meets all of them alike.
//
// The client is kube-apiserver's: one connection for all goroutines, wait-for-ready, a deadline of 3 s for each call.
package main
