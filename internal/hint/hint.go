// Package hint carries "what to do next" beside an error, out of the error's text, so that the command line can print
// it on a line of its own and a log can hold it in a field of its own. Only that and what finds advice, such as the name
// that was meant, belong here: no texts, no codes.
package hint

import "errors"

// hinted is an error with advice. Its text is the text of the error it wraps.
type hinted struct {
	err    error
	advice string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Wrap returns err with advice for the person who has to fix it: an imperative without a full stop, such as
// "chmod 0400 /etc/hsm-kms/pin". A nil err stays nil; empty advice adds nothing. Error, Is and As are unchanged.
func Wrap(err error, advice string) error {
	if err == nil || advice == "" {
		return err
	}
	return &hinted{err: err, advice: advice}
}

// Of returns the advice in err, or "" when there is none. The outermost wins, because it knows most about the
// situation; of joined errors, the first that has any.
func Of(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.advice
	}
	return ""
}
