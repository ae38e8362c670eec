// Package boltfile reads a bbolt database, the file that etcd keeps its data in, from last key to first, without
// believing it. What etcd stores in it is package snapshot's. It depends on nothing; a file is read by one goroutine.
//
// Why not go.etcd.io/bbolt, whose format this is: it maps the file and follows its page numbers unchecked. A file that
// was cut short ends the process with SIGBUS, a forged page number makes it read the process's other memory, a page
// that names itself as its child overflows the stack, and the mapping of a large backup counts as resident memory. A
// backup is read here exactly when something went wrong, so each of these must be an error. bbolt is what the tests
// compare with.
//
// The format (bbolt v1.5.0, internal/common): pages of equal size, little-endian as on every machine that Kubernetes
// runs on but s390x, whose files are refused.
//
//	page    id (8) | flags (2) | count (2) | overflow (4): more pages that belong to it | elements | their bytes
//	meta    pages 0 and 1: magic, version, page size, flags, root bucket (page, sequence), freelist, high-water mark,
//	        transaction, FNV-1a checksum; the valid one with the later transaction counts
//	branch  elements: position (4) | key size (4) | child page (8)
//	leaf    elements: flags (4) | position (4) | key size (4) | value size (4); flag 1: the value is a bucket
//	bucket  root page (8) | sequence (8); root 0: its only page follows in place
package boltfile
