package bench

import (
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// Counter counts the calls into an HSM. The zero value is ready; it is safe for concurrent use.
type Counter struct {
	calls atomic.Int64
}

var _ envelope.Observer = (*Counter)(nil)

// HSMCall implements envelope.Observer.
func (c *Counter) HSMCall(_, function, result string, _ time.Duration) {
	switch {
	case result == "abandoned": // told again when it returns
	case result == "CKR_OK" && (function == "C_GetAttributeValue" || function == "C_GetSlotList"):
		c.calls.Add(2) // miekg/pkcs11 asks for the length first
	default:
		c.calls.Add(1)
	}
}

// Calls is how many there were so far.
func (c *Counter) Calls() int64 { return c.calls.Load() }
