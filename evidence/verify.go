package evidence

import (
	"context"
	"runtime"
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
	DEKs        int64 `json:"deks"` // distinct, of objects that were corrected while etcd was read too; each was sent to the HSM once
	DEKsFailed  int64 `json:"deksFailed"`
	// Keys are the same by key, of provider kms:v2 only.
	Keys []VerifiedKey `json:"keys"`
	// Failures names what failed and what is undecodable: the first MaxNamed, in order of their keys.
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
	v := &verifier{opener: opener, opts: opts, filter: newFilter(opts.Known, opts.Resources), seen: map[string]bool{}, deks: map[stored.DEK]*openedDEK{}}
	v.out.Time = opts.Now().UTC().Format(time.RFC3339Nano)
	defer v.wipe()
	for _, source := range sources {
		if err := v.run(ctx, source); err != nil {
			return nil, err
		}
	}
	return v.result(), nil
}
