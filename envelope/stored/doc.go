// Package stored decodes what kube-apiserver keeps in etcd, as far as that can be done without a key: which provider
// a value was encrypted by, under which key_id and with which DEK, and which resource an etcd key belongs to. It
// decodes; it reads no etcd and no files, and decrypts nothing.
//
// A value in etcd is one of
//
//	k8s:enc:kms:v2:NAME: EncryptedObject     a protobuf that names the key_id and carries the encrypted DEK
//	k8s:enc:kms:v1:NAME: length DEK data     16-bit big-endian length of the encrypted DEK
//	k8s:enc:aescbc:v1:KEY: data              also aesgcm and secretbox: the key is in the EncryptionConfiguration
//	anything without k8s:enc:                plain text ("k8s\x00" protobuf, "{" JSON, d9 d9 f7 CBOR)
//
// (k8s.io/apiserver v0.37.2: pkg/server/options/encryptionconfig, pkg/storage/value/encrypt/envelope). What the API
// server would refuse to decode is undecodable here too, and the other way round: a test compares the two.
//
// Everything here is a pure function of bytes that somebody else wrote: no input makes it panic, and what it returns
// shares the input's memory.
//
// It depends on protobuf's wire format alone. Functions keep nothing and may be called from any number of goroutines.
package stored
