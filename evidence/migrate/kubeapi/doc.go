// Package kubeapi asks API servers through client-go for what package migrate needs of them. It also finds
// the kubeconfig and the API servers' own addresses. It also creates, lists and deletes canaries: objects labelled hsm-kms/canary
// that show what an API server writes. It depends on migrate, evidence, envelope/stored and hint. A Server is safe for concurrent use.
//
// An object is rewritten by a merge patch without any change, {}. The API server reads the object, applies nothing, and
// stores it if the bytes differ from those in etcd, or if its transformer calls these stale: encrypted under another
// key_id, another DEK type, or not by the first provider (k8s.io/apiserver v0.37.2: pkg/storage/etcd3/store.go,
// GuaranteedUpdate; pkg/storage/value/transformer.go, prefixTransformers.TransformFromStorage;
// pkg/storage/value/encrypt/envelope/kmsv2/envelope.go). An object that is already as it should be is not written. An empty
// patch carries no content that could undo somebody else's change in between, and names no field manager anything.
//
// Of every object the answer is its metadata only (PartialObjectMetadata, with no other form that the API server might
// choose): what a Secret holds never comes to this process. Annotations are metadata: kubectl apply keeps a copy of what
// it applied in one. Only the resource version of an answer is looked at, and none is logged.
package kubeapi
