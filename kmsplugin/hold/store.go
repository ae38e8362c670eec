package hold

import (
	"crypto/sha256"
	"maps"
	"slices"
	"sync"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// store is the list of wrapped DEKs, and what is held of it: DEKs and hold keys, sealed under the page.
//
// All methods may be called from any number of goroutines; none asks the HSM or a file.
type store struct {
	mu      sync.Mutex // guards the fields below
	page    *page      // nil: there is no page of memory that can be locked, and so nothing is held
	isOpen  bool       // the page has a key; else nothing is taken
	entries []*entry   // in the order in which they came
	byName  map[[sha256.Size]byte]*entry
	ids     map[string]usedKey // of the entries, each once: key_ids are as long as envelopes
	keys    map[keyDay]*sealed
	full    bool // a DEK had no room in the list
	dirty   bool // the list is another than the one in stateDir
}

// entry is a wrapped DEK, and the DEK while it is held.
type entry struct {
	key      usedKey
	envelope []byte
	dek      sealed // number 0: not held
	opened   bool   // in this process: the envelope is good
}

// usedKey is a key_id as API servers store it.
type usedKey struct {
	text string
	id   envelope.KeyID
}

type keyDay struct {
	id  envelope.KeyID
	day envelope.Day
}

func newStore(p *page) *store {
	return &store{page: p, byName: map[[sha256.Size]byte]*entry{}, ids: map[string]usedKey{}, keys: map[keyDay]*sealed{}}
}

// nameOf differs between any two entries: NUL is in no key_id.
func nameOf(keyID string, envelope []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(keyID))
	h.Write([]byte{0})
	h.Write(envelope)
	return [sha256.Size]byte(h.Sum(nil))
}

// list adds a wrapped DEK, and reports whether it is new. false with fits false: there is no room.
func (s *store) list(keyID string, sealedDEK []byte) (added, fits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.entries)
	fits = s.add(keyID, sealedDEK) != nil
	return len(s.entries) > before, fits
}

// add is list without the lock: mu is held. nil: it cannot be listed.
func (s *store) add(keyID string, sealedDEK []byte) *entry {
	name := nameOf(keyID, sealedDEK)
	if e := s.byName[name]; e != nil {
		return e
	}
	used, known := s.ids[keyID]
	if !known {
		id, _, err := envelope.ParseUsedKeyID(keyID)
		if err != nil {
			return nil // nothing can be held under it, and nobody can have sealed under it
		}
		used = usedKey{text: keyID, id: id}
	}
	if len(s.entries) >= holdfile.MaxEntries {
		s.full = true
		return nil
	}
	s.ids[keyID] = used
	e := &entry{key: used, envelope: slices.Clone(sealedDEK)}
	s.entries, s.byName[name], s.dirty = append(s.entries, e), e, true
	return e
}

// put lists a wrapped DEK, and holds the DEK while the store is open. dek is not kept.
func (s *store) put(keyID string, sealedDEK, dek []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.add(keyID, sealedDEK); e != nil && s.isOpen && e.dek.number == 0 {
		e.dek, e.opened = s.page.seal(dek), true
	}
}

// dek returns the DEK of a wrapped one if it is held. The caller wipes it.
func (s *store) dek(keyID string, sealedDEK []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName[nameOf(keyID, sealedDEK)]
	if e == nil || e.dek.number == 0 {
		return nil, false
	}
	out := make([]byte, len(e.dek.data))
	if s.page.open(&e.dek, out) != nil {
		e.dek.wipe()
		return nil, false
	}
	return out, true
}

// putKey holds the hold key of a day while the store is open.
func (s *store) putKey(id envelope.KeyID, day envelope.Day, key *envelope.HoldKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isOpen && s.keys[keyDay{id, day}] == nil {
		kept := s.page.seal(key[:])
		s.keys[keyDay{id, day}] = &kept
	}
}

// holdKey gives use the hold key of a day, and wipes it. false: it is not held.
func (s *store) holdKey(id envelope.KeyID, day envelope.Day, use func(*envelope.HoldKey)) bool {
	var key envelope.HoldKey
	defer clear(key[:])
	if !s.readKey(id, day, &key) {
		return false
	}
	use(&key)
	return true
}

func (s *store) readKey(id envelope.KeyID, day envelope.Day, key *envelope.HoldKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.keys[keyDay{id, day}]
	if kept == nil {
		return false
	}
	if s.page.open(kept, key[:]) != nil {
		kept.wipe()
		delete(s.keys, keyDay{id, day})
		return false
	}
	return true
}

// hasKeys reports whether the hold keys of all days from first to last are held.
func (s *store) hasKeys(id envelope.KeyID, first, last envelope.Day) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for day := first; day <= last; day++ {
		if s.keys[keyDay{id, day}] == nil {
			return false
		}
	}
	return true
}

// dropKeys wipes the hold keys of keys and days that are not kept.
func (s *store) dropKeys(keep func(id envelope.KeyID, day envelope.Day) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.keys, func(of keyDay, key *sealed) bool {
		gone := !keep(of.id, of.day)
		if gone {
			key.wipe()
		}
		return gone
	})
}

// takes reports whether secrets are taken: there is a page, and it has a key.
func (s *store) takes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isOpen
}

// open draws a process key, if there is none.
func (s *store) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.page != nil && !s.isOpen {
		s.page.draw()
		s.isOpen = true
	}
}

// wipe wipes all that is held, and takes nothing more until it is opened. It reports whether there was anything.
func (s *store) wipe() (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.page != nil {
		s.page.wipe() // what follows is of no use from here on
	}
	s.isOpen = false
	for _, e := range s.entries {
		any = any || e.dek.number != 0
		e.dek.wipe()
	}
	any = any || len(s.keys) > 0
	for _, key := range s.keys {
		key.wipe()
	}
	clear(s.keys)
	return any
}

// wipeKey wipes what is held under one key, and reports whether there was anything.
func (s *store) wipeKey(id envelope.KeyID) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if e.key.id == id && e.dek.number != 0 {
			any = true
			e.dek.wipe()
		}
	}
	maps.DeleteFunc(s.keys, func(of keyDay, key *sealed) bool {
		if of.id != id {
			return false
		}
		any = true
		key.wipe()
		return true
	})
	return any
}

// forget takes a wrapped DEK off the list that does not open. false: it has opened before, so the fault is not the envelope's.
func (s *store) forget(keyID string, sealedDEK []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := nameOf(keyID, sealedDEK)
	e := s.byName[name]
	if e == nil || e.opened {
		return false
	}
	delete(s.byName, name)
	i := slices.Index(s.entries, e)
	s.entries = slices.Delete(s.entries, i, i+1)
	s.dirty = true
	return true
}

// complete notes that all that etcd has is listed. What had no room before does not count then, if there is room now.
func (s *store) complete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.entries) < holdfile.MaxEntries {
		s.full = false
	}
}

// empty takes all off the list.
func (s *store) empty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries, s.full, s.dirty = nil, false, true
	clear(s.byName)
	clear(s.ids)
}

// counts is the list in numbers. Entries whose key is certainly not served do not count: no HSM opens them.
type counts struct {
	held, listed int
	full         bool
	missing      []string // key_ids of listed entries that are not held; at most holdfile.MaxMissing
}

func (s *store) count(served func(envelope.KeyID) bool) (c counts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.full = s.full
	var last envelope.KeyID // entries of one key mostly follow one another, and a look into a map for each takes most of the time
	is := false
	for _, e := range s.entries {
		if e.key.id != last {
			last, is = e.key.id, served(e.key.id)
		}
		if !is {
			continue
		}
		c.listed++
		switch {
		case e.dek.number != 0:
			c.held++
		case len(c.missing) < holdfile.MaxMissing && !slices.Contains(c.missing, e.key.text):
			c.missing = append(c.missing, e.key.text)
		}
	}
	return c
}

// unheld returns at most n entries that are to be opened: those of served keys that are not held.
func (s *store) unheld(served func(envelope.KeyID) bool, n int) (entries []holdfile.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if len(entries) == n {
			break
		}
		if e.dek.number == 0 && served(e.key.id) {
			entries = append(entries, holdfile.Entry{KeyID: e.key.text, Envelope: e.envelope})
		}
	}
	return entries
}

// samples returns one held entry of each key.
func (s *store) samples() map[envelope.KeyID]holdfile.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[envelope.KeyID]holdfile.Entry{}
	for _, e := range s.entries {
		if _, there := all[e.key.id]; !there && e.dek.number != 0 {
			all[e.key.id] = holdfile.Entry{KeyID: e.key.text, Envelope: e.envelope}
		}
	}
	return all
}

// keyIDs are those under which anything is held.
func (s *store) keyIDs() []envelope.KeyID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := map[envelope.KeyID]bool{}
	for _, e := range s.entries {
		if e.dek.number != 0 {
			ids[e.key.id] = true
		}
	}
	for of := range s.keys {
		ids[of.id] = true
	}
	return slices.Collect(maps.Keys(ids))
}

// changed returns the list if it is another than the one last returned. unsaved takes that back.
func (s *store) changed() (list holdfile.List, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return holdfile.List{}, false
	}
	s.dirty = false
	list.Entries = make([]holdfile.Entry, len(s.entries))
	for i, e := range s.entries {
		list.Entries[i] = holdfile.Entry{KeyID: e.key.text, Envelope: e.envelope}
	}
	return list, true
}

// saved notes that the list is the one in stateDir.
func (s *store) saved() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = false
}

func (s *store) unsaved() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = true
}
