// Package audit is the trail of every Encrypt and Decrypt: a file of JSON lines in which each record carries
// the hash of the one before, so that a change, a removal, an addition or another order shows. It has the
// format, the one writer of a file, and the check of files. docs/audit.md says the same for operators, and what it does not protect against.
//
// A line is one JSON object of at most [maxLine] bytes, with its fields in this order:
//
//	time        RFC 3339, UTC, microseconds
//	sequence    1 for the first record of a chain, one more for each after it, across files
//	operation   "Encrypt", "Decrypt", or what a command does; "audit." begins the chain's own records
//	requestUID  keyID  code            strings, bounded; a cut one ends in "...(N bytes)"
//	duration    seconds, six decimals
//	peer        pid (0: unknown), uid, executable ("": unknown)
//	object      reason                 only where a command has them
//	previous    the hash of the record before, 64 lower-case hex digits; zeros for the first of a chain
//	hash        SHA-256 of this line's bytes from "{" up to and without `,"hash":`
//
// The chain's own records have time, sequence, operation, then those of these that apply, then previous, hash:
//
//	opens       true: the first record of a file, and there alone
//	cause       why it was written
//	lost        how many operations are not in the trail, because it could not be written
//	torn        {bytes, sha256} of what stands between the last good record and this one: see below
//
//	audit.started    a process began to write, and the one before it had ended well (or there was none)
//	audit.ended      it ended well
//	audit.rotated    the chain goes on in another file, whose first record links here
//	audit.continued  the first record of that other file
//	audit.recovered  something was wrong since the record before: cause says what
//
// A crash, a power loss or a full disk can leave a torn line. It is kept. The next writer (or the same one,
// when it can write again) ends it with a newline, if it has none, and writes audit.recovered, which links to
// the last good record, and whose torn covers all bytes after the newline of that record and before the
// newline in front of this one. Lost operations use no sequence numbers.
//
// One writer has the file: it holds flock(2) on it. [Verify] sees by that lock that a file is being written.
//
// It depends on envelope for key_ids, and on filelock, ownedfile and hint. Writer documents its lock; Verify and FindKey
// read files and keep nothing.
package audit
