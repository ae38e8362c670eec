// Package migrate brings everything that etcd holds under one key: it has the API servers rewrite what is not under it.
// What may live here is that work: which objects are left (survey), whether every API server writes under the key (prove),
// and the rewriting, at a pace and with what can fail on the way. How an API server is asked is [Server]'s (package
// kubeapi), what etcd holds an evidence.Source's. It knows no flags and prints nothing.
//
// etcd is the only state. A run that was killed at any point leaves objects that are under the key and objects that are
// not yet; the next run does the latter. Nothing is kept elsewhere, and nothing that was decrypted comes here: see
// kubeapi for what an API server is asked to do.
//
// Memory: objects pass through in the pages of the source. What grows with a store is one entry per resource, and the
// lists of those that failed, which have a limit.
package migrate
