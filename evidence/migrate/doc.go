// Package migrate brings everything that etcd holds under one key: it has the API servers rewrite what is not under it.
// It finds which objects are left (survey), proves that every API server writes under the key (prove), and rewrites at a
// pace. It asks API servers through [Server] (package kubeapi) and etcd through evidence.Source. It knows no flags and prints nothing.
//
// etcd is the only state. A run that was killed at any point leaves objects that are under the key and objects that are
// not yet; the next run does the latter. Nothing is kept elsewhere, and nothing that was decrypted comes here: see
// kubeapi for what an API server is asked to do.
//
// Memory: objects pass through in the pages of the source. What grows with a store is one entry per resource, and the
// lists of those that failed, which have a limit.
//
// It depends on evidence, encconfig, envelope for key_ids, envelope/stored and hint. A run starts goroutines for the
// rewriting, and has ended when it returns.
package migrate
