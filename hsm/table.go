package hsm

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// table is the ring as a generation holds it. It is replaced whole, never changed.
type table struct {
	byID     map[envelope.KeyID]*heldKey
	byHandle map[p11.Object]*heldKey
	keys     []envelope.Key // refused ones too
}

// newest are the keys with which the token is tried, the latest first: a few, because one bad key must not condemn the
// token, and what ails the token shows with each. Those that but names are left out; nil: none are.
func (t *table) newest(but func(*heldKey) bool) []*heldKey {
	keys := slices.SortedFunc(maps.Values(t.byID), newestFirst)
	if but != nil {
		keys = slices.DeleteFunc(keys, but)
	}
	return keys[:min(len(keys), triedKeys)]
}

func newestFirst(a, b *heldKey) int {
	return cmp.Or(b.key.Activation.Compare(a.key.Activation), bytes.Compare(b.key.CKAID, a.key.CKAID))
}

// has reports whether an object with that CKA_ID was shown.
func (t *table) has(ckaID []byte) bool {
	return slices.ContainsFunc(t.keys, func(k envelope.Key) bool { return bytes.Equal(k.CKAID, ckaID) })
}

// only reports whether no other key of the table has the CKA_ID.
func (t *table) only(held *heldKey) bool {
	for _, other := range t.byID {
		if other != held && bytes.Equal(other.key.CKAID, held.key.CKAID) {
			return false
		}
	}
	return true
}

// with is the table with another handle for the key, and without it for the handle 0.
func (t *table) with(id envelope.KeyID, handle p11.Object) *table {
	held := t.byID[id]
	if held == nil || held.handle == handle {
		return t
	}
	next := &table{byID: maps.Clone(t.byID), byHandle: maps.Clone(t.byHandle), keys: t.keys}
	delete(next.byHandle, held.handle)
	if handle == 0 {
		delete(next.byID, id)
		next.keys = slices.DeleteFunc(slices.Clone(t.keys), func(k envelope.Key) bool { return k.ID == id })
		return next
	}
	moved := *held
	moved.handle = handle
	next.byID[id], next.byHandle[handle] = &moved, &moved
	return next
}

// triedKeys is with how many keys the token is tried before it is given up.
const triedKeys = 3

// tableOf makes a table of what was read.
func tableOf(all []*heldKey) *table {
	t := &table{byID: map[envelope.KeyID]*heldKey{}, byHandle: map[p11.Object]*heldKey{}}
	for _, held := range all {
		t.byHandle[held.handle] = held
		t.keys = append(t.keys, held.key)
		if held.key.Refused == "" {
			t.byID[held.key.ID] = held
		}
	}
	return t
}
