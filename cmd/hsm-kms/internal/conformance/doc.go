// Package conformance holds one token against what hsm-kms requires of it, for somebody who has hardware that nobody here
// has. It makes keys under a label of its own, uses them as the plugin would, and destroys them again. It touches no other
// object of the token, and leaves nothing there that it does not report.
//
// It depends on app for the tokens, on hsm for what is made and destroyed, on envelope for the profile, and on hint. It
// prints nothing: a Report is the text that can be sent in. Run is for one caller at a time.
package conformance
