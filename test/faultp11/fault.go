package faultp11

import (
	"fmt"
	"hash/fnv"
	"time"
)

// The word that holds a fault: see module/control.h.
const (
	timesForever = 0x3fff
	timesShift   = 32
	skipShift    = 46
	modeShift    = 60

	modeBefore    = 0
	modeAfter     = 1
	modeTruncate  = 2
	modeCorrupt   = 3
	modeDelay     = 4
	modeHang      = 5
	modeHangAfter = 6
	modeDie       = 7
	modeMisbehave = 8
)

// Misbehaviour is what a faulty library does to its process in passing.
type Misbehaviour uint64

// What Misbehave knows.
const (
	FloodStdout         Misbehaviour = iota // 16 MiB of lines
	FloodStderr                             // the same
	TakeSignals                             // handlers for SIGTERM, SIGSEGV, SIGPIPE, SIGCHLD, SIGPROF and SIGURG
	TakeSignalsOffStack                     // the same, without SA_ONSTACK
	ForkHelper                              // a child that keeps all descriptors; Helper has its number
	ForkDaemon                              // the same, in a session of its own
	HangInHandlers                          // handlers as in TakeSignals that never return
)

// Trait is what a library demands of its caller, or lacks.
type Trait uint64

// The traits that Traits knows.
const (
	SlotInfoFirst Trait = 1 << iota // C_GetTokenInfo fails before C_GetSlotList for a length and C_GetSlotInfo
	OneThread                       // C_Initialize with CKF_OS_LOCKING_OK is CKR_CANT_LOCK
	Strlen                          // C_Login reads the PIN up to a zero byte
	PINPad                          // C_Login takes no PIN, and has CKF_PROTECTED_AUTHENTICATION_PATH; needs Options.PINPad
	Frozen                          // a process does not find keys that were made after it has found some
	ReadWriteOnly                   // C_OpenSession without CKF_RW_SESSION is CKR_FUNCTION_FAILED
)

// Death is how a faulty module ends its process.
type Death uint64

// The deaths that Die knows.
const (
	Segfault Death = iota
	Abort
	Exit      // exit(3)
	HeapSmash // found by free
)

// Plan is a fault that is described but not yet set: Once, Times or UntilCleared sets it. A function has one fault at
// a time, the one set last.
type Plan struct {
	c    *Control
	fns  []string
	word uint64
}

func (c *Control) plan(mode, rv uint64, fns ...string) *Plan {
	for _, fn := range fns {
		number(fn) // misspelt: here, where the test's line is near
	}
	if rv > 0xffffffff {
		panic(fmt.Sprintf("faultp11: return code %#x has more than 32 bits", rv))
	}
	return &Plan{c: c, fns: fns, word: mode<<modeShift | rv}
}

// Fail makes calls of fn answer rv (a CKR code), without the real call. Mind that a length query (no output buffer) is
// a call too: miekg/pkcs11 makes two calls of C_Encrypt for each Encrypt.
func (c *Control) Fail(fn string, rv uint) *Plan { return c.plan(modeBefore, uint64(rv), fn) }

// FailAll is Fail for each of TokenFunctions: the token is gone. Counts are per function.
func (c *Control) FailAll(rv uint) *Plan { return c.plan(modeBefore, uint64(rv), TokenFunctions()...) }

// FailAfter makes the real call and then answers rv: done, but reported as failed. Length queries are let pass and do
// not count. A session that C_OpenSession made so stays open and is counted in OpenSessions.
func (c *Control) FailAfter(fn string, rv uint) *Plan { return c.plan(modeAfter, uint64(rv), fn) }

// Truncate takes the last byte off fn's output. It works on functions with one output buffer (C_Encrypt, C_Decrypt,
// C_Sign, C_Digest, C_WrapKey and their parts); length queries are let pass and do not count.
func (c *Control) Truncate(fn string) *Plan { return c.plan(modeTruncate, 0, fn) }

// Corrupt flips a bit of the first byte of fn's output, under the conditions of Truncate.
func (c *Control) Corrupt(fn string) *Plan { return c.plan(modeCorrupt, 0, fn) }

// DelayCall makes calls of fn take d longer (whole microseconds, up to an hour). Unlike Delay it is for single calls:
// After and Once choose them. Length queries are let pass and do not count, as with HangCall and HangCallAfter.
func (c *Control) DelayCall(fn string, d time.Duration) *Plan {
	return c.plan(modeDelay, uint64(d.Microseconds()), fn)
}

// HangCall makes calls of fn block before the real call, as Hang, but After and Once choose them. They go on when fn
// gets another fault, or none: Clear or ClearFunction.
func (c *Control) HangCall(fn string) *Plan { return c.plan(modeHang, 0, fn) }

// HangCallAfter is HangCall after the real call.
func (c *Control) HangCallAfter(fn string) *Plan { return c.plan(modeHangAfter, 0, fn) }

// Die makes a call of fn end the process that makes it, without the real call.
func (c *Control) Die(fn string, how Death) *Plan { return c.plan(modeDie, uint64(how), fn) }

// Misbehave makes a call of fn do this first, and then what it would do otherwise.
func (c *Control) Misbehave(fn string, how Misbehaviour) *Plan {
	return c.plan(modeMisbehave, uint64(how), fn)
}

// After lets n calls (0 to 16383) pass first.
func (p *Plan) After(n int) *Plan {
	if n < 0 || n > 0x3fff {
		panic(fmt.Sprintf("faultp11: After(%d): want 0 to 16383", n))
	}
	return &Plan{p.c, p.fns, p.word&^(0x3fff<<skipShift) | uint64(n)<<skipShift}
}

// Once sets the fault for one call.
func (p *Plan) Once() { p.Times(1) }

// Times sets the fault for n calls (1 to 16382).
func (p *Plan) Times(n int) {
	if n < 1 || n >= timesForever {
		panic(fmt.Sprintf("faultp11: Times(%d): want 1 to %d", n, timesForever-1))
	}
	p.set(uint64(n))
}

// UntilCleared sets the fault until Clear, or until another takes its place.
func (p *Plan) UntilCleared() { p.set(timesForever) }

func (p *Plan) set(times uint64) {
	for _, fn := range p.fns {
		p.c.slot(fn).fault.Store(p.word | times<<timesShift)
	}
	p.c.changedHang() // calls that hung in an earlier HangCall go on
}

// Delay makes every call of fn take d longer (whole microseconds; 0: no longer). A delay that has begun is not cut
// short; Hang is for what a test must be able to end.
func (c *Control) Delay(fn string, d time.Duration) {
	c.slot(fn).delayMicros.Store(uint64(d.Microseconds()))
}

// DelayAll makes every call of every function take d longer, on top of Delay: a network HSM.
func (c *Control) DelayAll(d time.Duration) { c.b.delayAllMicros.Store(uint64(d.Microseconds())) }

// Hang makes calls of fn block before the real call, until the release that it gives, or Clear, is called. They then
// go on as any other, so a fault set meanwhile still meets them. A release is good for any number of calls, from any
// goroutine, and never ends a later Hang.
func (c *Control) Hang(fn string) (release func()) { return c.hang(0, fn) }

// HangAll is Hang for each of TokenFunctions: the network to the HSM is cut.
func (c *Control) HangAll() (release func()) { return c.hang(0, TokenFunctions()...) }

// HangAfter makes calls of fn block after the real call: it happened, and nobody was told.
func (c *Control) HangAfter(fn string) (release func()) { return c.hang(1, fn) }

func (c *Control) hang(side uint64, fns ...string) (release func()) {
	value := c.b.hangSerial.Add(1)<<1 | side
	for _, fn := range fns {
		c.slot(fn).hang.Store(value)
	}
	c.changedHang() // calls that hung in an earlier Hang of the same function go on
	return func() {
		for _, fn := range fns {
			c.slot(fn).hang.CompareAndSwap(value, 0)
		}
		c.changedHang()
	}
}

// MaxSessions makes C_OpenSession answer CKR_SESSION_COUNT while n sessions are open; 0: no limit.
func (c *Control) MaxSessions(n int) { c.b.maxSessions.Store(uint64(max(n, 0))) }

// TokenFlags sets these bits (CKF_USER_PIN_COUNT_LOW, ...) in every CK_TOKEN_INFO; 0: none.
func (c *Control) TokenFlags(flags uint) { c.b.tokenFlags.Store(uint64(flags)) }

// HideSlots makes C_GetSlotList find no slot at all.
func (c *Control) HideSlots(hide bool) {
	if hide {
		c.b.hideSlots.Store(1)
	} else {
		c.b.hideSlots.Store(0)
	}
}

// Traits sets what the library demands; none: nothing. They take effect at its next C_Initialize at the latest.
func (c *Control) Traits(traits ...Trait) {
	var all Trait
	for _, trait := range traits {
		all |= trait
	}
	c.b.traits.Store(uint64(all))
}

// IVs says who makes the nonce of an AES-GCM encryption.
type IVs uint64

// OfCaller is the usual way. The module writes 12 bytes of its own to where the caller's IV is (AWS CloudHSM), or appends 16
// to the tag (Luna in FIPS mode); either refuses an IV of its caller that is not zero.
const (
	OfCaller IVs = iota
	WrittenBack
	Appended
)

// MakeIVs has the module make the nonces. It is the nature of the module, which Clear does not change.
func (c *Control) MakeIVs(how IVs) { c.b.ivMode.Store(uint64(how)) }

// IVSource is what the nonces are that a module makes.
type IVSource uint64

// The sources. Counted nonces begin at RestartIVs.
const (
	RandomIVs IVSource = iota
	ZeroIVs
	ConstantIVs
	CountedIVs
	ReservedIVs
)

// DrawIVs has the next n nonces (1 to 16382; 0: all) come from the source; those after them are random.
func (c *Control) DrawIVs(from IVSource, n int) {
	if n < 0 || n >= timesForever {
		panic(fmt.Sprintf("faultp11: DrawIVs(%d): want 0 to %d", n, timesForever-1))
	}
	if n == 0 {
		n = timesForever
	}
	c.b.ivSource.Store(uint64(from)<<32 | uint64(n))
}

// RestartIVs has the counter begin again, as an HSM that forgets it.
func (c *Control) RestartIVs() { c.b.ivCounter.Store(0) }

// BadKey makes use of the key with this CKA_ID answer rv (C_EncryptInit, C_DecryptInit, C_SignInit); 0: no more.
func (c *Control) BadKey(ckaID []byte, rv uint) {
	name := fnv.New64a()
	_, _ = name.Write(ckaID)
	c.b.badKeyCode.Store(uint64(rv))
	c.b.badKey.Store(name.Sum64())
	if rv == 0 {
		c.b.badKey.Store(0)
	}
}

// DropSessions has the real module close all sessions at the next call, before it, once: every session handle is then
// invalid, and the login lost with them.
func (c *Control) DropSessions() { c.b.dropSessions.Add(1) }

// DropLogin has the real module log out at the next call, before it, once: sessions live on, private keys are gone.
func (c *Control) DropLogin() { c.b.dropLogin.Add(1) }

// Clear ends every fault, delay, hang, limit and flag. Counters stay, and so does a drop that no call has met yet.
func (c *Control) Clear() {
	for i := range c.b.slots {
		c.clear(&c.b.slots[i])
	}
	c.b.delayAllMicros.Store(0)
	c.b.maxSessions.Store(0)
	c.b.tokenFlags.Store(0)
	c.b.hideSlots.Store(0)
	c.b.traits.Store(0)
	c.b.badKey.Store(0)
	c.changedHang()
}

// ClearFunction ends the fault, delay and hang of fn alone.
func (c *Control) ClearFunction(fn string) {
	c.clear(c.slot(fn))
	c.changedHang()
}

func (*Control) clear(s *slot) {
	s.fault.Store(0)
	s.delayMicros.Store(0)
	s.hang.Store(0)
}
