package evidence

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

type keyName struct{ provider, keyID string }

// openedDEK is a DEK, or why it could not be opened. once makes sure that the HSM is asked once, however often a source is
// read.
type openedDEK struct {
	once  sync.Once
	dek   []byte // set by once; wipe clears it
	err   error
	fatal bool
}

type verifier struct {
	opener Opener
	opts   VerifyOptions
	filter filter          // of the goroutine that reads
	seen   map[string]bool // resources with an object, of the goroutine that reads
	out    Verification
	parts  []*part // of the sources that are through

	mu   sync.Mutex // guards the fields below
	deks map[stored.DEK]*openedDEK
	part *part // of the try that runs
}

// part is what came of one try to read one source. The verifier's mu guards it.
type part struct {
	ledger   Ledger
	counts   counts
	keys     map[keyName]*keyCounts
	failures []Problem
}

// counts are of objects that have no key of provider kms:v2.
type counts struct{ plaintext, others, undecodable int64 }

// keyCounts are of the objects of one key.
type keyCounts struct {
	verified, skipped, failed int64
	deks                      map[stored.DEK]*usedDEK
}

func (c *keyCounts) objects() int64 { return c.verified + c.skipped + c.failed }

// usedDEK is a DEK as one key's objects use it.
type usedDEK struct {
	*openedDEK
	used int64 // objects that were decrypted or skipped; those that were corrected since included
}

func (v *verifier) begin(corrected bool) *part {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.part = &part{ledger: NewLedger(corrected), keys: map[keyName]*keyCounts{}}
	return v.part
}

// run reads one source and lets the workers go through it.
func (v *verifier) run(ctx context.Context, source Source) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan []Object)
	var workers, begun sync.WaitGroup
	for range v.opts.Parallel {
		workers.Go(func() {
			for objects := range work {
				if err := v.objects(ctx, objects); err != nil {
					cancel(err)
				}
				begun.Done()
			}
		})
	}
	reading, err := ReadWhole(ctx, source, func(corrected bool) func([]Object) error {
		begun.Wait() // what is left of an earlier try goes to that try's part
		part := v.begin(corrected)
		return func(page []Object) error {
			if len(page) > 0 && page[0].Corrects {
				begun.Wait() // what is corrected must have been counted
				v.mu.Lock()
				part.failures = withoutCorrected(part.failures, page)
				v.mu.Unlock()
			}
			for objects := range slices.Chunk(v.wanted(page), chunk) {
				begun.Add(1)
				select {
				case work <- objects:
				case <-ctx.Done():
					begun.Done()
					return context.Cause(ctx)
				}
			}
			return nil
		}
	})
	close(work)
	workers.Wait()
	// A worker that could not go on has cancelled the reading: its error is the cause.
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	v.out.Sources = append(v.out.Sources, reading)
	v.parts = append(v.parts, v.part)
	return err
}

// wanted are the page's newest revisions of the resources asked for, and what corrects any.
func (v *verifier) wanted(page []Object) []Object {
	kept := page[:0]
	for _, o := range page {
		place, wanted := v.filter.of(&o)
		switch {
		case wanted && !o.Past && !o.Deleted:
			v.seen[place.Resource] = true
		case o.Corrects:
			o.Deleted = true // or not wanted any more
		default:
			continue
		}
		kept = append(kept, o)
	}
	return kept
}

// objects goes through a few of them. Its error is the HSM's or the context's.
func (v *verifier) objects(ctx context.Context, objects []Object) error {
	for i := range objects {
		o := &objects[i]
		if o.Deleted {
			v.note(o, func(*part) *int64 { return nil })
			continue
		}
		value, err := stored.Parse(o.Value)
		switch {
		case err != nil:
			v.note(o, func(p *part) *int64 {
				p.fail(Problem{Key: string(o.Key), Reason: reason(err)})
				return &p.counts.undecodable
			})
		case value.Provider == stored.Plain:
			v.note(o, func(p *part) *int64 { return &p.counts.plaintext })
		case value.Provider != stored.KMSv2:
			v.note(o, func(p *part) *int64 { return &p.counts.others })
		default:
			if err := v.encrypted(ctx, o, &value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *verifier) encrypted(ctx context.Context, o *Object, value *stored.Value) error {
	dek, key, skipped := v.entry(value)
	dek.once.Do(func() { dek.dek, dek.fatal, dek.err = open(ctx, v.opener, &value.Object) })
	if dek.fatal {
		return dek.err
	}
	err := dek.err
	if err == nil && !skipped {
		var plain []byte
		plain, err = decrypt(dek.dek, &value.Object, o.Key)
		clear(plain)
	}
	v.note(o, func(p *part) *int64 {
		switch {
		case err != nil:
			p.fail(Problem{Key: string(o.Key), KeyID: value.Object.KeyID, Reason: err.Error()})
			return &key.failed
		case skipped:
			return &key.skipped
		}
		return &key.verified
	})
	return nil
}

// entry finds or makes the DEK's and the key's, and reports whether the sample leaves the object out.
func (v *verifier) entry(value *stored.Value) (dek *openedDEK, key *keyCounts, skipped bool) {
	id := value.Object.DEK()
	name := keyName{value.Text(), value.Object.KeyID}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.deks[id] == nil {
		v.deks[id] = &openedDEK{}
	}
	key = v.part.keys[name]
	if key == nil {
		key = &keyCounts{deks: map[stored.DEK]*usedDEK{}}
		v.part.keys[keyName{name.provider, strings.Clone(name.keyID)}] = key
	}
	used := key.deks[id]
	if used == nil {
		used = &usedDEK{openedDEK: v.deks[id]}
		key.deks[id] = used
	}
	used.used++
	return used.openedDEK, key, v.opts.Sample > 0 && used.used > v.opts.Sample
}

// note counts an object where of says, which may note more.
func (v *verifier) note(o *Object, of func(*part) *int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.part.ledger.Put(o, of(v.part))
}

// fail names a failure.
func (p *part) fail(problem Problem) { p.failures = named(p.failures, problem) }

func (v *verifier) result() *Verification {
	out := &v.out
	keys, deks := map[keyName]*VerifiedKey{}, map[stored.DEK]bool{}
	for _, p := range v.parts {
		out.Plaintext += p.counts.plaintext
		out.Others += p.counts.others
		out.Undecodable += p.counts.undecodable
		out.Failures = append(out.Failures, p.failures...)
		for name, counts := range p.keys {
			if counts.objects() == 0 {
				continue // all of them were corrected away
			}
			key := keys[name]
			if key == nil {
				key = &VerifiedKey{Provider: name.provider, KeyID: name.keyID}
				keys[name] = key
			}
			key.add(counts, deks)
		}
	}
	out.Keys = []VerifiedKey{}
	for _, key := range keys {
		out.Keys = append(out.Keys, *key)
		out.Verified += key.Verified
		out.Skipped += key.Skipped
		out.Failed += key.Failed
		out.DEKs += key.DEKs
		out.DEKsFailed += key.DEKsFailed
	}
	slices.SortFunc(out.Keys, func(a, b VerifiedKey) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.KeyID, b.KeyID))
	})
	out.Objects = out.Verified + out.Skipped + out.Failed + out.Plaintext + out.Others + out.Undecodable
	out.Failures = append([]Problem{}, firstNamed(out.Failures)...)
	out.Missing = append([]string{}, absent(v.opts.Resources, slices.Collect(maps.Keys(v.seen)))...)
	out.Revision = out.Sources[0].Revision
	out.OK = out.Failed == 0 && out.Undecodable == 0
	return out
}

// add adds the counts of a source; deks are those that have been counted already.
func (k *VerifiedKey) add(c *keyCounts, deks map[stored.DEK]bool) {
	k.Objects += c.objects()
	k.Verified += c.verified
	k.Skipped += c.skipped
	k.Failed += c.failed
	for id, dek := range c.deks {
		if deks[id] {
			continue
		}
		deks[id] = true
		k.DEKs++
		if dek.err != nil {
			k.DEKsFailed++
		}
	}
}

// wipe clears the DEKs. v.mu is held, or no worker runs any more.
func (v *verifier) wipe() {
	for _, entry := range v.deks {
		clear(entry.dek)
	}
}
