// Package evidence finds out what etcd, or a snapshot of it, holds under which key: the report, whether every DEK can still
// be opened and every object authenticated (verify), and one object recovered (get). Objects come
// from a [Source] (packages live and snapshot), envelope/stored decodes them, and the HSM is an [Opener] that the command
// line hands in. It knows no PKCS#11 and no KMS service.
//
// Memory: objects pass through in pages and are forgotten. What grows with a store is one entry for each distinct
// (resource, key), one hash for each distinct DEK, and in a snapshot one hash for each key of etcd; the same when an etcd
// is read that is compacted meanwhile.
//
// A report shows the state of an etcd at one revision: see [ReadWhole]. A state that cannot be read so is an error.
//
// Everything read here may have been written by somebody hostile. What cannot be decoded is counted and named, a
// damaged file is [ErrDamaged], and text from etcd is never printed without being made safe first.
//
// It depends on envelope, envelope/stored, hint and the types of k8s.io/api and the decoders of k8s.io/apimachinery. A
// reading is one call, which starts goroutines of its
// own where it says so and waits for them; a [Source] belongs to one reading at a time.
package evidence
