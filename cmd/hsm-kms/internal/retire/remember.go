package retire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
)

// remembering opens what the ring can open. Of a key that is not there it says when this machine destroyed it, so that
// nobody looks for it in vain.
type remembering struct {
	ring      evidence.Opener
	destroyed map[string]Destruction
}

// Remembering is the ring with the memory of this machine's trail of keys retire, which is an aid: one that cannot be read is
// passed over.
func Remembering(ring evidence.Opener, auditPath string) evidence.Opener {
	destroyed, _ := Destructions(auditPath)
	return remembering{ring, destroyed}
}

// Open implements evidence.Opener.
func (r remembering) Open(ctx context.Context, keyID string, wrapped []byte) ([]byte, error) {
	dek, err := r.ring.Open(ctx, keyID, wrapped)
	if errors.Is(err, envelope.ErrUnknownKey) {
		if is := r.destroyed[envelope.KeyOf(keyID)]; !is.Ended.IsZero() {
			err = fmt.Errorf("%w; keys retire destroyed it at %s, by the audit trail of this machine", err, is.Ended.UTC().Format(time.RFC3339))
		}
	}
	return dek, err
}
