package envelope

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// onDemandInterval is the shortest time between two re-reads of the ring that an unknown key_id causes:
// a client that sends made-up key_ids must not turn into load on the HSM.
const onDemandInterval = time.Second

// RingConfig says which ring, and what is known of it from before.
type RingConfig struct {
	Name    string
	Profile Profile
	Refuse  []KeyID          // not to be served, as if they were gone: the rehearsal before keys retire
	Floor   KeyID            // the latest key that was current in an earlier process; zero: none known
	Now     func() time.Time // nil: time.Now
	// ReadOnly: the ring opens, and has no current key. None becomes current, however long its activation is past, and Exercise
	// proves every key once in a token's generation.
	ReadOnly bool

	// Tokens are the names of all configured tokens; nil: those of the Tokens that NewRing is given. A key becomes current
	// when it is proven on each.
	Tokens []string
	// Grace is how long after its activation a key waits for tokens that are absent. All nodes need the same.
	Grace time.Duration
	// AbsentAfter is how long a token must have been out of reach, as far as this process has seen, to be absent. Until then
	// a token that lacked a key goes on holding it back: a connection that is replaced, or not made yet, is no absence.
	AbsentAfter time.Duration
}

// Ring is the key ring: every key on the tokens that bears its name. The tokens are its only state; what
// is held here is what was last read from them, what this process has proven of it, and the latest key
// known to have been activated.
//
// Concurrency: all methods may be called from any number of goroutines. There are two locks. refreshing is held while tokens
// are read, so it is waited for with a context; mu is held for an instant, by Advance on the path of every request. Where both
// are needed refreshing comes first. No call into a token is made with mu, but for Seek, which does not block.
type Ring struct {
	cfg    RingConfig
	tokens Tokens
	began  time.Time

	refreshing chan struct{} // holds a value during a refresh: one at a time; taken before mu
	demanded   time.Time     // when an unknown key_id last caused a re-read, guarded by refreshing
	demandErr  error         // and what came of it

	mu       sync.Mutex       // guards the fields below
	read     map[string][]Key // by token, as last read; a token out of reach keeps what it had
	everRead bool
	lastRead time.Time
	versions []Version // served, in order; replaced, never changed in place
	refused  []Version
	proven   map[proofKey]proof
	seen     map[string]time.Time // by token: when it could be reached last
	floor    KeyID                // the latest that was current or opened under: no older one becomes current
	used     KeyID                // the latest that did its work as the current key, or opened; floor or older
}

// NewRing returns a ring of which nothing has been read yet.
func NewRing(cfg RingConfig, tokens Tokens) *Ring {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Tokens == nil {
		for _, token := range tokens.Members() {
			cfg.Tokens = append(cfg.Tokens, token.Name())
		}
	}
	r := &Ring{
		cfg: cfg, tokens: tokens, refreshing: make(chan struct{}, 1), began: cfg.Now(),
		read: map[string][]Key{}, proven: map[proofKey]proof{}, seen: map[string]time.Time{},
	}
	if cfg.Floor.Ring == cfg.Name {
		r.floor, r.used = cfg.Floor, cfg.Floor
	}
	return r
}

// Name is the ring's name, with which its key_ids begin.
func (r *Ring) Name() string { return r.cfg.Name }

// Refresh re-reads the ring from every token that can be reached. It fails when none could be read, with
// what each said; the ring then stays as it was.
func (r *Ring) Refresh(ctx context.Context) error {
	if err := r.lockRefresh(ctx); err != nil {
		return err
	}
	defer r.unlockRefresh()
	return r.refreshLocked(ctx)
}

// lockRefresh waits for a refresh that is under way, as long as ctx allows: a slow HSM must not keep callers.
func (r *Ring) lockRefresh(ctx context.Context) error {
	select {
	case r.refreshing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Ring) unlockRefresh() { <-r.refreshing }

func (r *Ring) refreshLocked(ctx context.Context) error {
	members := r.tokens.Members()
	keys := make([][]Key, len(members))
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, token := range members {
		wg.Go(func() { keys[i], errs[i] = token.Keys(ctx) })
	}
	wg.Wait()

	r.mu.Lock()
	defer r.mu.Unlock()
	anyRead := false
	for i, token := range members {
		if errs[i] == nil {
			r.read[token.Name()] = keys[i]
			r.forgetProofs(token.Name(), keys[i])
			anyRead = true
		}
	}
	if !anyRead {
		return fmt.Errorf("reading the key ring %s: %w", r.cfg.Name, cmp.Or(errors.Join(errs...), fmt.Errorf("%w: no token of it may be used", ErrUnavailable)))
	}
	r.everRead = true
	r.lastRead = r.cfg.Now()
	r.versions, r.refused = r.merge(members)
	r.seekLacking(members, errs)
	return nil
}

// seekLacking has tokens look again for what another one holds and they do not show. r.mu is held.
func (r *Ring) seekLacking(members []Token, errs []error) {
	for i, token := range members {
		s, ok := token.(Seeker)
		if !ok || errs[i] != nil {
			continue
		}
		for j := range r.versions {
			if v := &r.versions[j]; !slices.Contains(v.Tokens, token.Name()) {
				s.Seek(v.ID)
			}
		}
	}
}

// seek has every token look again for a key that none shows, and re-reads the ring if one has.
func (r *Ring) seek(ctx context.Context, id KeyID) error {
	looked := false
	for _, token := range r.tokens.Members() {
		s, ok := token.(Seeker)
		if !ok {
			continue
		}
		if c := s.Seek(id); c != nil {
			select {
			case <-c:
				looked = true
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if !looked {
		return nil
	}
	return r.Refresh(ctx)
}

// forgetProofs drops what was proven of keys that the token holds no longer. Another token, out of reach, may still be
// listed with such a key, and it must not become current on the strength of what is gone. r.mu is held.
func (r *Ring) forgetProofs(token string, keys []Key) {
	held := make(map[KeyID]bool, len(keys))
	for _, k := range keys {
		held[k.ID] = true
	}
	maps.DeleteFunc(r.proven, func(p proofKey, _ proof) bool { return p.token == token && !held[p.id] })
}

// merge makes the ring's versions from what each token holds. r.mu is held.
func (r *Ring) merge(members []Token) (served, refused []Version) {
	byID := map[KeyID]*Version{}
	for _, token := range members {
		for _, key := range r.read[token.Name()] {
			if key.Refused == "" && slices.Contains(r.cfg.Refuse, key.ID) {
				key.Refused = "refuseKeys in the configuration names it"
			}
			if key.Refused != "" {
				refused = append(refused, Version{Key: key, State: Refused, Tokens: []string{token.Name()}})
				continue
			}
			v := byID[key.ID]
			if v == nil {
				v = &Version{Key: key}
				byID[key.ID] = v
			}
			if slices.Contains(v.Tokens, token.Name()) {
				v.duplicated = true
			} else {
				v.Tokens = append(v.Tokens, token.Name())
			}
			v.Attributes = worstOf(v.Attributes, key.Attributes)
		}
	}
	for _, v := range byID {
		served = append(served, *v)
	}
	slices.SortFunc(served, func(a, b Version) int { return compareIDs(a.ID, b.ID) })
	return served, refused
}

// worstOf is what is true of every copy of a key: what leaves one token, or was not made in it, is no secret
// of the others either.
func worstOf(a, b Attributes) Attributes {
	return Attributes{
		Known:   a.Known && b.Known,
		Private: a.Private && b.Private, Sensitive: a.Sensitive && b.Sensitive,
		Extractable:     a.Extractable || b.Extractable,
		AlwaysSensitive: a.AlwaysSensitive && b.AlwaysSensitive, NeverExtractable: a.NeverExtractable && b.NeverExtractable,
		Local: a.Local && b.Local,
	}
}

// View is what the ring looks like at one moment.
type View struct {
	Ring       string    // its name
	Versions   []Version // served ones in order, then refused ones
	Current    *Version  // nil: none
	Deferred   *Version  // due, and held back until it is proven on every configured token; nil: none
	Problem    error     // why there is no current key, or what is wrong although there is one
	Duplicates error     // names versions that share a CKA_ID, current or not; nil: none do
	LastRead   time.Time // zero: never
	Tokens     []string  // the names of all configured tokens
}

// Advance brings the ring to the present and returns what it looks like. It asks no HSM. A key that it names
// current is activated for good: it becomes the floor, and no later call names an older one, unless the key is gone from every
// token that can be reached and did nothing while it was current. That is a pending key that was withdrawn while
// this process could not re-read the ring, and nothing is missing with it.
func (r *Ring) Advance() View {
	generations := r.generations()
	suspended := r.suspended()
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	for token := range generations {
		r.seen[token] = now
	}
	versions := slices.Clone(r.versions)
	r.judge(versions, generations, suspended, now)
	if r.floor != r.used && len(generations) > 0 && !isWithin(versions, r.floor, generations) {
		r.floor = r.used
	}
	var c choice
	switch {
	case !r.everRead:
		c.problem = errUnread()
	case !r.cfg.ReadOnly:
		c = choose(versions, now, r.floor)
	case len(versions) == 0:
		c.problem = ErrRingEmpty
	}
	if c.current != nil {
		r.floor = c.current.ID
	}
	states(versions, c.current, now)
	return View{
		Ring:     r.cfg.Name,
		Versions: append(versions, r.refused...),
		Current:  c.current, Deferred: c.deferred, Problem: c.problem,
		Duplicates: duplicatesIn(versions), LastRead: r.lastRead, Tokens: r.cfg.Tokens,
	}
}

// isWithin reports whether a token of those that can be reached holds the key.
func isWithin(versions []Version, id KeyID, generations map[string]uint64) bool {
	v := find(versions, id)
	return v != nil && slices.ContainsFunc(v.Tokens, func(token string) bool { return generations[token] != 0 })
}

// generations are those of the tokens that can be reached now, by name.
func (r *Ring) generations() map[string]uint64 {
	g := map[string]uint64{}
	for _, token := range r.tokens.Members() {
		if n := token.Generation(); n != 0 {
			g[token.Name()] = n
		}
	}
	return g
}

// suspended are the keys that tokens cannot use just now, by token.
func (r *Ring) suspended() map[string]map[KeyID]error {
	all := map[string]map[KeyID]error{}
	for _, token := range r.tokens.Members() {
		if s, ok := token.(Suspender); ok {
			all[token.Name()] = s.Suspended()
		}
	}
	return all
}

// Floor is the latest key known to have been activated; zero: none. It is no secret.
func (r *Ring) Floor() KeyID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.floor
}

// activated notes that id has done its work: current on this node, or sealed under on another.
func (r *Ring) activated(id KeyID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.floor.IsZero() || compareIDs(id, r.floor) > 0 {
		r.floor = id
	}
	if r.used.IsZero() || compareIDs(id, r.used) > 0 {
		r.used = id
	}
}
