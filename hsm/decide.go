package hsm

// Decisions about an error of an operation, and about what a check finds out then. This file is the whole of the
// decision; operate.go, check.go and verify.go carry it out.
//
//	SESSION_*, OPERATION_*                       another session, once; then as any other error
//	NOT_INITIALIZED, DEVICE_REMOVED and the like  a check at once
//	any other error on key K                     a fresh session, once; then a check
//
//	the check finds                              and so
//	  no login                                   connect again
//	  K, and its proof matches                   go on, with the handle under which K was found
//	  that K fails, and another key works now    suspend K: other tokens take its requests
//	  no K                                       one swap of the worker, then K is unknown
//	  no key that works                          connect again
//	  nothing wrong, after NOT_INITIALIZED etc.  connect again: these mean that sessions and login are gone
//	  nothing, because calls hang or wait        go on: what becomes of those calls decides
//
// Besides, the worker is replaced when too many keys are suspended (suspend.go) or too many calls fail (failurerate.go),
// whatever single checks find.

// step is what an operation does next about an error.
type step int

const (
	retryFresh step = iota // on a session that is surely new
	checkFirst             // wait for a check, then try once more
	giveUp
)

// nextStep says what an operation does next. retried, checked: what it did before.
func nextStep(class errorClass, retried, checked bool) step {
	switch {
	case checked:
		return giveUp
	case class >= classToken, retried:
		return checkFirst
	}
	return retryFresh
}

// verdict is what a check has found out.
type verdict int

const (
	undecided    verdict = iota // calls hang, or all sessions are at work
	keyWorks                    // where no key was suspected: a key does
	keyFails                    // and another one works now
	keyMissing                  // the token does not show it
	loggedOut                   // so nothing is known of any key
	nothingWorks                // no key that was tried, or not even a session
)

// reaction is what the supervisor does about a verdict.
type reaction int

const (
	goOn reaction = iota
	suspendKey
	seekKey
	connectAgain
)

// react is what is done when an error of that class was followed by that verdict.
func react(class errorClass, found verdict) reaction {
	switch {
	case found == keyFails:
		return suspendKey
	case found == keyMissing:
		return seekKey
	case found == loggedOut, found == nothingWorks, found == keyWorks && class >= classToken:
		return connectAgain
	}
	return goOn // undecided, keyWorks
}
