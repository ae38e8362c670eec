package evidence

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// Verification is the outcome of Verify. Field names are a contract.
type Verification struct {
	Time     string `json:"time"`
	Revision int64  `json:"revision"` // of the first source
	OK       bool   `json:"ok"`       // nothing failed and nothing was undecodable
	// Objects are the newest revisions that were looked at; each is one of the six that follow.
	Objects     int64 `json:"objects"`
	Verified    int64 `json:"verified"`  // decrypted and authenticated
	Skipped     int64 `json:"skipped"`   // their DEK was opened; the sample leaves the object itself out
	Failed      int64 `json:"failed"`    // the DEK or the object could not be opened
	Plaintext   int64 `json:"plaintext"` // readable without any key
	Others      int64 `json:"otherProviders"`
	Undecodable int64 `json:"undecodable"`
	DEKs        int64 `json:"deks"` // distinct; each was sent to the HSM once
	DEKsFailed  int64 `json:"deksFailed"`
	// Keys are the same by key, of provider kms:v2 only.
	Keys []VerifiedKey `json:"keys"`
	// Failures names what failed and what is undecodable: the first MaxNamed, in the order of the source.
	Failures []Problem `json:"failures"`
	Sources  []Reading `json:"sources"`
	// Missing are the resources that were asked for by name and of which there is no object.
	Missing []string `json:"missing"`
}

// VerifiedKey is what came of the objects of one key.
type VerifiedKey struct {
	Provider   string `json:"provider"`
	KeyID      string `json:"keyID"`
	Objects    int64  `json:"objects"`
	Verified   int64  `json:"verified"`
	Skipped    int64  `json:"skipped"`
	Failed     int64  `json:"failed"`
	DEKs       int64  `json:"deks"`
	DEKsFailed int64  `json:"deksFailed"`
}

// VerifyOptions say what to look at.
type VerifyOptions struct {
	Resources []string          // only these; empty: all
	Known     *stored.Resources // nil: what kube-apiserver stores
	Sample    int64             // objects to decrypt under each DEK; 0: all
	Parallel  int               // how many DEKs and objects are opened at once; 0: as many as there are CPUs, at least 8
	Now       func() time.Time
}

// minParallel keeps an HSM on a network busy from a machine with few CPUs; it is the default of maxSessions too.
const minParallel = 8

// chunk is how many objects a worker takes at once.
const chunk = 64

// Verify has every distinct DEK of provider kms:v2 opened by the HSM, once, and decrypts and authenticates every
// object under it. Plaintext is wiped at once. Older revisions in a snapshot are passed over. An error means that it
// could not be brought to its end: the HSM out of reach or a source's error.
func Verify(ctx context.Context, sources []Source, opener Opener, opts VerifyOptions) (*Verification, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Parallel <= 0 {
		opts.Parallel = max(minParallel, runtime.GOMAXPROCS(0))
	}
	v := &verifier{opener: opener, opts: opts, filter: newFilter(opts.Known, opts.Resources), seen: map[string]bool{}, keys: map[keyName]*VerifiedKey{}, deks: map[stored.DEK]*openedDEK{}}
	v.out.Time = opts.Now().UTC().Format(time.RFC3339Nano)
	defer v.wipe()
	for _, source := range sources {
		if err := v.run(ctx, source); err != nil {
			return nil, err
		}
	}
	return v.result(), nil
}

type keyName struct{ provider, keyID string }

// openedDEK is a DEK, or why it could not be opened. once makes sure that the HSM is asked once.
type openedDEK struct {
	once  sync.Once
	dek   []byte
	err   error
	fatal bool
	used  atomic.Int64 // objects that asked for it
}

type verifier struct {
	opener Opener
	opts   VerifyOptions
	filter filter          // of the goroutine that reads
	seen   map[string]bool // resources with an object, of the goroutine that reads

	mu   sync.Mutex
	out  Verification
	keys map[keyName]*VerifiedKey
	deks map[stored.DEK]*openedDEK
}

// run reads one source and lets the workers go through it.
func (v *verifier) run(ctx context.Context, source Source) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan []Object)
	var workers sync.WaitGroup
	for range v.opts.Parallel {
		workers.Go(func() {
			for objects := range work {
				if err := v.objects(ctx, objects); err != nil {
					cancel(err)
				}
			}
		})
	}
	reading, err := source.Read(ctx, func(page []Object) error {
		for objects := range slices.Chunk(v.wanted(page), chunk) {
			select {
			case work <- objects:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	close(work)
	workers.Wait()
	// A worker that could not go on has cancelled the reading: its error is the cause.
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	v.out.Sources = append(v.out.Sources, reading)
	return err
}

// wanted are the page's newest revisions of the resources asked for.
func (v *verifier) wanted(page []Object) []Object {
	return slices.DeleteFunc(page, func(o Object) bool {
		place, wanted := v.filter.of(&o)
		if !o.Past && wanted {
			v.seen[place.Resource] = true
		}
		return o.Past || !wanted
	})
}

// objects goes through a few of them. Its error is the HSM's or the context's.
func (v *verifier) objects(ctx context.Context, objects []Object) error {
	for i := range objects {
		o := &objects[i]
		value, err := stored.Parse(o.Value)
		switch {
		case err != nil:
			v.note(func() {
				v.out.Undecodable++
				v.fail(Problem{Key: string(o.Key), Reason: reason(err)})
			})
		case value.Provider == stored.Plain:
			v.note(func() { v.out.Plaintext++ })
		case value.Provider != stored.KMSv2:
			v.note(func() { v.out.Others++ })
		default:
			if err := v.encrypted(ctx, o, &value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *verifier) encrypted(ctx context.Context, o *Object, value *stored.Value) error {
	entry, key := v.entry(value)
	first := false
	entry.once.Do(func() {
		first = true
		entry.dek, entry.fatal, entry.err = open(ctx, v.opener, &value.Object)
	})
	if entry.fatal {
		return entry.err
	}
	err, skipped := entry.err, false
	if err == nil {
		if n := entry.used.Add(1); v.opts.Sample > 0 && n > v.opts.Sample {
			skipped = true
		} else {
			var plain []byte
			plain, err = decrypt(ctx, entry.dek, &value.Object, o.Key)
			clear(plain)
		}
	}
	v.note(func() {
		key.Objects++
		if first && entry.err != nil {
			key.DEKsFailed++
		}
		switch {
		case err != nil:
			key.Failed++
			v.fail(Problem{Key: string(o.Key), KeyID: value.Object.KeyID, Reason: err.Error()})
		case skipped:
			key.Skipped++
		default:
			key.Verified++
		}
	})
	return nil
}

// entry finds or makes the DEK's and the key's.
func (v *verifier) entry(value *stored.Value) (*openedDEK, *VerifiedKey) {
	id := value.Object.DEK()
	name := keyName{value.Text(), value.Object.KeyID}
	v.mu.Lock()
	defer v.mu.Unlock()
	key := v.keys[name]
	if key == nil {
		key = &VerifiedKey{Provider: name.provider, KeyID: strings.Clone(name.keyID)}
		v.keys[name] = key
	}
	entry := v.deks[id]
	if entry == nil {
		entry = &openedDEK{}
		v.deks[id] = entry
		key.DEKs++
	}
	return entry, key
}

func (v *verifier) note(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.out.Objects++
	change()
}

// fail names a failure, while there is room. Under mu.
func (v *verifier) fail(p Problem) {
	if len(v.out.Failures) < MaxNamed {
		v.out.Failures = append(v.out.Failures, p)
	}
}

func (v *verifier) result() *Verification {
	out := &v.out
	out.Keys = []VerifiedKey{}
	for _, key := range v.keys {
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
	out.Failures = append([]Problem{}, out.Failures...)
	out.Missing = append([]string{}, absent(v.opts.Resources, slices.Collect(maps.Keys(v.seen)))...)
	slices.SortFunc(out.Failures, func(a, b Problem) int { return cmp.Compare(a.Key, b.Key) })
	out.Revision = out.Sources[0].Revision
	out.OK = out.Failed == 0 && out.Undecodable == 0
	return out
}

// wipe clears the DEKs. No worker runs any more.
func (v *verifier) wipe() {
	for _, entry := range v.deks {
		clear(entry.dek)
	}
}
