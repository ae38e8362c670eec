package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/boltfile"
)

const (
	revisionSize = 8 + 1 + 8
	pageObjects  = 512
	pageBytes    = 1 << 20
)

// errFound ends the search for one object.
var errFound = errors.New("found")

var _ evidence.Source = (*File)(nil)

// keyHash stands for a key of etcd: to find two keys with one hash is to have broken SHA-256.
type keyHash [16]byte

// reader collects what one pass over the file finds.
type reader struct {
	file      *File
	ctx       context.Context
	each      func([]evidence.Object) error
	seen      map[keyHash]struct{} // keys whose newest revision has been met
	page      []evidence.Object
	bytes     int
	revision  int64
	elsewhere int64 // encrypted, and not below the prefixes
}

// Read implements evidence.Source. The hash is checked beside the reading, by another processor: what each gets counts once Read
// has returned without an error.
func (f *File) Read(ctx context.Context, _ evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	r := &reader{file: f, seen: map[keyHash]struct{}{}}
	read := func(ctx context.Context, emit func([]evidence.Object) error) error {
		r.ctx, r.each = ctx, emit
		if err := r.run(); err != nil {
			return fmt.Errorf("reading the snapshot %s: %w", f.path, damaged(err))
		}
		return nil
	}
	checked := make(chan error, 1)
	go func() { checked <- f.checkHash(ctx, nil) }()
	err := evidence.Ahead(ctx, read, each)
	wrong := <-checked
	if changed := f.unchanged(); changed != nil {
		wrong = changed
	}
	if wrong != nil && (err == nil || errors.Is(wrong, evidence.ErrDamaged)) {
		err = fmt.Errorf("reading the snapshot %s: %w", f.path, wrong) // whatever else is wrong with it follows from that
	}
	if err != nil {
		return evidence.Reading{}, err
	}
	reading := evidence.Reading{Name: f.path, Revision: r.revision, SHA256: f.sha256, Prefixes: f.opts.Prefixes, Elsewhere: r.elsewhere, Unreadable: []string{}}
	if r.elsewhere > 0 {
		reading.Notes = append(reading.Notes, evidence.ElsewhereNote(r.elsewhere, "in the file"))
	}
	if f.sha256 == "" {
		reading.Notes = append(reading.Notes, "the file has no integrity hash: only its structure was checked, and what stands in the write-ahead log alone is not in it")
	}
	reading.Notes = append(reading.Notes, "free pages of the file, write-ahead logs and older backups keep what they held: they were not looked at")
	return reading, nil
}

func (r *reader) run() error {
	db, err := boltfile.Open(r.file.file, r.file.size)
	if err != nil {
		return err
	}
	if progress := r.file.opts.Progress; progress != nil {
		db.Progress = func(done, total int64) { progress("reading the snapshot", done, total) }
	}
	if err := db.Backward("key", r.item); err != nil {
		return err
	}
	return r.flush()
}

// item takes one revision.
func (r *reader) item(key, value []byte) error {
	o, deleted, err := decode(key, value)
	if err != nil {
		return err
	}
	r.revision = max(r.revision, o.Revision)
	if isMark(value) {
		return nil
	}
	path, ours := evidence.PathOf(r.file.opts.Prefixes, o.Key)
	if !ours {
		if stored.IsEncrypted(o.Value) {
			r.elsewhere++
		}
		return nil
	}
	sum := sha256.Sum256(o.Key)
	hash := keyHash(sum[:])
	_, o.Past = r.seen[hash]
	if !o.Past {
		r.seen[hash] = struct{}{}
	}
	if deleted {
		return nil
	}
	o.Path = path
	return r.add(o)
}

// isMark reports whether a value is what etcdutl snapshot restore --bump-revision writes: nothing at all, at the revision
// that etcd is to go on from. It is no object, and stays in the database and in all its backups.
func isMark(value []byte) bool { return len(value) == 0 }

// decode reads one item of the bucket. What it returns is a copy. A value and its number that contradict each other are
// damage: etcd would not take them either.
func decode(key, value []byte) (o evidence.Object, deleted bool, err error) {
	deleted = len(key) == revisionSize+1 && key[revisionSize] == 't'
	if len(key) != revisionSize && !deleted || key[8] != '_' {
		return evidence.Object{}, false, fmt.Errorf("%w: a revision's number has the form %.40q", evidence.ErrDamaged, key)
	}
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(value, &kv); err != nil {
		return evidence.Object{}, false, fmt.Errorf("%w: revision %x: %w", evidence.ErrDamaged, key, err)
	}
	if isMark(value) {
		kv.ModRevision = int64(binary.BigEndian.Uint64(key)) //nolint:gosec // a negative one is refused
	}
	main := int64(binary.BigEndian.Uint64(key)) //nolint:gosec // a negative one is refused
	if main < 0 || !deleted && kv.GetModRevision() != main {
		return evidence.Object{}, false, fmt.Errorf("%w: revision %x says that it is revision %d", evidence.ErrDamaged, key, kv.GetModRevision())
	}
	return evidence.Object{Key: kv.GetKey(), Value: kv.GetValue(), Revision: main}, deleted, nil
}

func (r *reader) add(o evidence.Object) error {
	r.page = append(r.page, o)
	r.bytes += len(o.Key) + len(o.Value)
	if len(r.page) < pageObjects && r.bytes < pageBytes {
		return nil
	}
	return r.flush()
}

// flush hands the page over. The next one is new: its objects may be kept.
func (r *reader) flush() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	page := r.page
	r.page, r.bytes = make([]evidence.Object, 0, pageObjects), 0
	if len(page) == 0 {
		return nil
	}
	return r.each(page)
}

// Find implements evidence.Source. Of a key that was deleted, the newest revision says so.
func (f *File) Find(ctx context.Context, key string) (evidence.Object, error) {
	if err := f.checkHash(ctx, f.opts.Progress); err != nil {
		return evidence.Object{}, fmt.Errorf("reading the snapshot %s: %w", f.path, err)
	}
	var found evidence.Object
	var deleted bool
	db, err := boltfile.Open(f.file, f.size)
	if err == nil {
		err = db.Backward("key", func(revision, value []byte) error {
			if !bytes.Contains(value, []byte(key)) { // most are others: not worth decoding
				return ctx.Err()
			}
			o, gone, err := decode(revision, value)
			if err != nil || string(o.Key) != key || isMark(value) {
				return err
			}
			found, deleted = o, gone
			return errFound
		})
	}
	if changed := f.unchanged(); changed != nil {
		return evidence.Object{}, fmt.Errorf("reading the snapshot %s: %w", f.path, changed)
	}
	switch {
	case errors.Is(err, errFound) && deleted:
		return evidence.Object{}, fmt.Errorf("%w: %s was deleted before the snapshot %s was taken", evidence.ErrNotFound, evidence.Printable(key), f.path)
	case errors.Is(err, errFound):
		return found, nil
	case err != nil:
		return evidence.Object{}, fmt.Errorf("reading the snapshot %s: %w", f.path, damaged(err))
	}
	return evidence.Object{}, fmt.Errorf("%w: %s is not in the snapshot %s", evidence.ErrNotFound, evidence.Printable(key), f.path)
}
