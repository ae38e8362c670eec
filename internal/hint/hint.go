// Package hint carries what to do next beside an error and not in its text, so that the command line prints it on a line
// of its own and a log has it in a field of its own. It also finds the name that was meant (Nearest). It depends on no
// other package. It keeps nothing: all functions may be called from any number of goroutines.
package hint

import "errors"

// hinted is an error with a hint. Its text is the text of the error it wraps.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Wrap returns err with a hint for the person who has to fix it: an imperative without a full stop, such as
// "chmod 0400 /etc/hsm-kms/pin". A nil err stays nil; an empty hint adds nothing. Error, Is and As are unchanged.
func Wrap(err error, hint string) error {
	if err == nil || hint == "" {
		return err
	}
	return &hinted{err: err, hint: hint}
}

// Of returns the hint in err, or "" when there is none. The outermost wins, because it knows most about the
// situation; of joined errors, the first that has any.
func Of(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	return ""
}
