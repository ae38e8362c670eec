package hsm

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// fakeHSM is a token in memory: p11.API, and the workers in which its library runs. Under testing/synctest its calls take
// the time that a test says, and no other. It is held to the contract of package p11test.
type fakeHSM struct {
	label, pin string
	now        func() time.Time

	mu       sync.Mutex
	next     p11.Object
	keys     map[p11.Object]*fakeKey
	calls    map[string]int
	most     map[string]int // at once
	began    []time.Time    // of workers
	logins   []time.Time
	sessions int // open, in all workers
	running  map[*fakeWorker]bool
	// meets says what befalls a call; nil: nothing does. It is called without the lock.
	meets func(c fakeCall) fakeFault
}

type fakeKey struct {
	label      string
	attributes map[uint][]byte
	secret     []byte
}

// fakeCall is one PKCS#11 call.
type fakeCall struct {
	worker   int // the number of the worker, from 1
	function string
	key      p11.Object
	request  bool // it belongs to an operation of a caller, and not to a reading or a check
}

// fakeFault is what befalls a call.
type fakeFault struct {
	rv    p11.RV
	takes time.Duration
	hangs <-chan struct{} // until it is closed
	dies  bool            // the worker
}

func newFakeHSM(t *testing.T) *fakeHSM {
	t.Helper()
	return &fakeHSM{
		label: "k8s", pin: "1234", now: time.Now, next: 1, keys: map[p11.Object]*fakeKey{},
		calls: map[string]int{}, most: map[string]int{}, running: map[*fakeWorker]bool{},
	}
}

// addKey adds a key for AES that was made in this token.
func (h *fakeHSM) addKey(label string, ckaID []byte) p11.Object {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	h.mu.Lock()
	defer h.mu.Unlock()
	object := h.next
	h.next++
	number := func(n uint64) []byte { return binary.NativeEndian.AppendUint64(nil, n) }
	h.keys[object] = &fakeKey{label: label, secret: secret, attributes: map[uint][]byte{
		pkcs11.CKA_ID: ckaID, pkcs11.CKA_PRIVATE: {1}, pkcs11.CKA_SENSITIVE: {1}, pkcs11.CKA_EXTRACTABLE: {0},
		pkcs11.CKA_ALWAYS_SENSITIVE: {1}, pkcs11.CKA_NEVER_EXTRACTABLE: {1}, pkcs11.CKA_LOCAL: {1},
		pkcs11.CKA_KEY_TYPE: number(pkcs11.CKK_AES), pkcs11.CKA_VALUE_LEN: number(32),
	}}
	return object
}

// count is how often a function was called.
func (h *fakeHSM) count(function string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[function]
}

// set replaces what befalls calls.
func (h *fakeHSM) set(meets func(c fakeCall) fakeFault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.meets = meets
}

func (h *fakeHSM) starts() []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.began)
}

// launch is Config.launch.
func (h *fakeHSM) launch(_ context.Context, cfg worker.Config) (workerProcess, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.began = append(h.began, h.now())
	w := &fakeWorker{
		hsm: h, cfg: cfg, number: len(h.began), sessions: map[p11.Session]*fakeSession{}, overdue: map[*int]time.Time{}, ended: make(chan struct{}),
	}
	h.running[w] = true
	return w, nil
}

// fakeWorker is a workerProcess.
type fakeWorker struct {
	hsm    *fakeHSM
	cfg    worker.Config
	number int

	mu          sync.Mutex
	initialized bool
	loggedIn    bool
	inLogin     int
	last        p11.Session
	sessions    map[p11.Session]*fakeSession
	overdue     map[*int]time.Time
	ended       chan struct{}
	why         error
	died        bool
}

type fakeSession struct {
	readWrite bool
	busy      chan struct{} // a call in it is overdue: closed when that has returned; nil: none is
}

func (w *fakeWorker) For(ctx context.Context, limit time.Duration) workerCalls {
	return fakeCalls{fakeWorker: w, ctx: ctx, limit: limit}
}

func (w *fakeWorker) Hanging(limit time.Duration) (n int, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, began := range w.overdue {
		if w.hsm.now().Sub(began) > limit {
			n++
			if began.After(since) {
				since = began
			}
		}
	}
	return n, since
}

func (w *fakeWorker) Ended() <-chan struct{} { return w.ended }
func (w *fakeWorker) Why() error             { return w.why }
func (w *fakeWorker) Died() bool             { return w.died }
func (w *fakeWorker) Resident() uint64       { return 0 }

// End ends the worker; a login that hangs is waited for.
func (w *fakeWorker) End() {
	for deadline := time.Now().Add(w.cfg.ConnectTimeout); time.Now().Before(deadline) && w.critical() && !hasEnded(w); {
		time.Sleep(5 * time.Millisecond)
	}
	w.end("ended", false)
}

func (w *fakeWorker) critical() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inLogin > 0
}

func (w *fakeWorker) EndNow(context.Context) bool {
	w.end("ended", false)
	return true
}

func (w *fakeWorker) end(why string, died bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why != nil {
		return
	}
	w.why, w.died = fmt.Errorf("%w: %s", p11.ErrEnded, why), died
	w.hsm.mu.Lock()
	w.hsm.sessions -= len(w.sessions)
	delete(w.hsm.running, w)
	w.hsm.mu.Unlock()
	close(w.ended)
}

// fakeCalls is workerCalls.
type fakeCalls struct {
	*fakeWorker
	ctx   context.Context
	limit time.Duration // 0: none
}

// do makes a call, which is overdue at until, at the limit, or when ctx ends.
func (c fakeCalls) do(call fakeCall, until time.Time, s p11.Session, f func() p11.RV) error {
	if hasEnded(c.fakeWorker) {
		return c.why
	}
	if err := c.ctx.Err(); err != nil {
		returned := make(chan struct{})
		close(returned)
		return &p11.Overdue{Function: call.function, Returned: returned, Cause: err}
	}
	call.worker, call.request = c.number, !until.IsZero()
	began := c.hsm.now()
	fault := c.hsm.enter(call)
	result := make(chan p11.RV, 1)
	run := func() {
		if c.wait(fault) {
			rv := fault.rv
			if rv == 0 {
				rv = f()
			}
			c.cfg.Hook(call.function, rv, c.hsm.now().Sub(began))
			result <- rv
		}
		c.hsm.leave(call)
	}
	if fault.takes == 0 && fault.hangs == nil {
		run()
	} else {
		go run()
	}
	ctx, cancel := c.deadline(until)
	defer cancel()
	select {
	case rv := <-result:
		return failure(call.function, rv)
	default:
	}
	select {
	case rv := <-result:
		return failure(call.function, rv)
	case <-c.ended:
		return c.why
	case <-ctx.Done():
		return c.abandon(call.function, s, began, result)
	}
}

func failure(function string, rv p11.RV) error {
	if rv != 0 {
		return &p11.Error{Function: function, RV: rv}
	}
	return nil
}

func (c fakeCalls) deadline(until time.Time) (context.Context, context.CancelFunc) {
	if c.limit > 0 {
		if t := time.Now().Add(c.limit); until.IsZero() || t.Before(until) {
			until = t
		}
	}
	if until.IsZero() {
		return context.WithCancel(c.ctx)
	}
	return context.WithDeadline(c.ctx, until)
}

// wait lets the time of a call pass; false: the worker has ended.
func (c fakeCalls) wait(fault fakeFault) bool {
	if fault.dies {
		c.end("signal: segmentation fault", true)
		return false
	}
	if fault.takes > 0 {
		select {
		case <-time.After(fault.takes):
		case <-c.ended:
			return false
		}
	}
	if fault.hangs != nil {
		select {
		case <-fault.hangs:
		case <-c.ended:
			return false
		}
	}
	return true
}

func (c fakeCalls) abandon(function string, s p11.Session, began time.Time, result <-chan p11.RV) error {
	w, returned, id := c.fakeWorker, make(chan struct{}), new(int)
	w.mu.Lock()
	w.overdue[id] = began
	if open := w.sessions[s]; open != nil {
		open.busy = returned
	}
	w.mu.Unlock()
	go func() {
		select {
		case <-result:
		case <-w.ended:
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.overdue, id)
		if open := w.sessions[s]; open != nil {
			open.busy = nil
		}
		close(returned)
	}()
	return &p11.Overdue{Function: function, Returned: returned, Cause: c.ctx.Err()}
}

func (h *fakeHSM) enter(call fakeCall) fakeFault {
	h.mu.Lock()
	h.calls[call.function]++
	in := call.function + " now"
	h.calls[in]++
	h.most[call.function] = max(h.most[call.function], h.calls[in])
	if call.function == "C_Login" {
		h.logins = append(h.logins, h.now())
	}
	meets := h.meets
	h.mu.Unlock()
	if meets == nil {
		return fakeFault{}
	}
	return meets(call)
}

func (h *fakeHSM) leave(call fakeCall) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[call.function+" now"]--
}

// call is do for what belongs to no session.
func (c fakeCalls) call(function string, f func() p11.RV) error {
	return c.do(fakeCall{function: function}, time.Time{}, 0, func() p11.RV {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.initialized && function != "C_Initialize" {
			return pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED
		}
		return f()
	})
}

// in is do for a call in a session.
func (c fakeCalls) in(s p11.Session, call fakeCall, until time.Time, f func(open *fakeSession) p11.RV) error {
	return c.do(call, until, s, func() p11.RV {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.initialized {
			return pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED
		}
		open := c.sessions[s]
		if open == nil {
			return pkcs11.CKR_SESSION_HANDLE_INVALID
		}
		return f(open)
	})
}

const fakeSlot = 7

func (c fakeCalls) Initialize() error {
	return c.call("C_Initialize", func() p11.RV {
		if c.initialized {
			return pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED
		}
		c.initialized = true
		return 0
	})
}

func (c fakeCalls) Slots() ([]uint, error) {
	if err := c.call("C_GetSlotList", func() p11.RV { return 0 }); err != nil {
		return nil, err
	}
	return []uint{fakeSlot}, nil
}

func (c fakeCalls) TokenInfo(slot uint) (info pkcs11.TokenInfo, err error) {
	err = c.call("C_GetTokenInfo", func() p11.RV {
		if slot != fakeSlot {
			return pkcs11.CKR_SLOT_ID_INVALID
		}
		return 0
	})
	if err != nil {
		return info, err
	}
	const flags = pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_LOGIN_REQUIRED | pkcs11.CKF_USER_PIN_INITIALIZED
	return pkcs11.TokenInfo{Label: c.hsm.label, SerialNumber: "1", Flags: flags}, nil
}

func (c fakeCalls) Mechanism(uint, uint) (info pkcs11.MechanismInfo, err error) {
	if err := c.call("C_GetMechanismInfo", func() p11.RV { return 0 }); err != nil {
		return info, err
	}
	return pkcs11.MechanismInfo{MinKeySize: 16, MaxKeySize: 32, Flags: pkcs11.CKF_ENCRYPT | pkcs11.CKF_DECRYPT | pkcs11.CKF_GENERATE}, nil
}

func (c fakeCalls) OpenSession(slot uint, readWrite bool) (s p11.Session, err error) {
	var opened p11.Session
	err = c.call("C_OpenSession", func() p11.RV {
		if slot != fakeSlot {
			return pkcs11.CKR_SLOT_ID_INVALID
		}
		c.last++
		opened = c.last
		c.sessions[opened] = &fakeSession{readWrite: readWrite}
		c.hsm.mu.Lock()
		defer c.hsm.mu.Unlock()
		c.hsm.sessions++
		return 0
	})
	if err != nil {
		return 0, err
	}
	return opened, nil
}

func (c fakeCalls) CloseSession(s p11.Session) error {
	c.mu.Lock()
	open := c.sessions[s]
	var busy chan struct{}
	if open != nil {
		busy = open.busy
	}
	c.mu.Unlock()
	if busy != nil {
		closed := make(chan struct{})
		go func() {
			<-busy
			_ = fakeCalls{fakeWorker: c.fakeWorker, ctx: context.Background()}.CloseSession(s)
			close(closed)
		}()
		return &p11.Overdue{Function: "C_CloseSession", Returned: closed}
	}
	return c.in(s, fakeCall{function: "C_CloseSession"}, time.Time{}, func(*fakeSession) p11.RV {
		delete(c.sessions, s)
		if len(c.sessions) == 0 {
			c.loggedIn = false
		}
		c.hsm.mu.Lock()
		defer c.hsm.mu.Unlock()
		c.hsm.sessions--
		return 0
	})
}

func (c fakeCalls) SessionInfo(s p11.Session) (info pkcs11.SessionInfo, err error) {
	state := uint(pkcs11.CKS_RO_PUBLIC_SESSION)
	err = c.in(s, fakeCall{function: "C_GetSessionInfo"}, time.Time{}, func(open *fakeSession) p11.RV {
		switch {
		case c.loggedIn && open.readWrite:
			state = pkcs11.CKS_RW_USER_FUNCTIONS
		case c.loggedIn:
			state = pkcs11.CKS_RO_USER_FUNCTIONS
		case open.readWrite:
			state = pkcs11.CKS_RW_PUBLIC_SESSION
		}
		return 0
	})
	if err != nil {
		return info, err
	}
	return pkcs11.SessionInfo{SlotID: fakeSlot, State: state}, nil
}

func (c fakeCalls) Login(s p11.Session, file pinfile.Identity) error {
	pin, err := pinfile.ReadState(file)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	right := string(pin.Bytes()) == c.hsm.pin
	c.addLogin(1)
	defer c.addLogin(-1)
	return c.in(s, fakeCall{function: "C_Login"}, time.Time{}, func(*fakeSession) p11.RV {
		switch {
		case c.loggedIn:
			return pkcs11.CKR_USER_ALREADY_LOGGED_IN
		case !right:
			return pkcs11.CKR_PIN_INCORRECT
		}
		c.loggedIn = true
		return 0
	})
}

func (w *fakeWorker) addLogin(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inLogin += n
}

func (c fakeCalls) LookAtPIN(file pinfile.Identity, key []byte) (pinfile.Look, error) {
	return pinfile.LookAt(file, key)
}

func (c fakeCalls) FindSecretKeys(s p11.Session, label string, limit int) ([]p11.Object, error) {
	var found []p11.Object
	err := c.in(s, fakeCall{function: "C_FindObjects"}, time.Time{}, func(*fakeSession) p11.RV {
		c.hsm.mu.Lock()
		defer c.hsm.mu.Unlock()
		for _, object := range slices.Sorted(maps.Keys(c.hsm.keys)) {
			if c.loggedIn && c.hsm.keys[object].label == label && len(found) < limit {
				found = append(found, object)
			}
		}
		return 0
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (c fakeCalls) FindData(p11.Session, string, string, int) ([]p11.Object, error) { return nil, nil }

// errNotFaked is of what no test of recovery needs.
var errNotFaked = errors.New("the fake does not make objects")

func (c fakeCalls) CreateData(p11.Session, string, string, []byte) error { return errNotFaked }
func (c fakeCalls) OpenMaker(uint, *pinfile.Identity) error              { return errNotFaked }
func (c fakeCalls) Make(worker.Secret) error                             { return errNotFaked }

func (c fakeCalls) Attribute(s p11.Session, o p11.Object, attribute uint) ([]byte, error) {
	values, err := c.Attributes(s, o, []uint{attribute})
	return values[attribute], err
}

func (c fakeCalls) Attributes(s p11.Session, o p11.Object, attributes []uint) (map[uint][]byte, error) {
	values := map[uint][]byte{}
	err := c.in(s, fakeCall{function: "C_GetAttributeValue", key: o}, time.Time{}, func(*fakeSession) p11.RV {
		key := c.key(o)
		if key == nil {
			return pkcs11.CKR_OBJECT_HANDLE_INVALID
		}
		for _, attribute := range attributes {
			if attribute == pkcs11.CKA_VALUE {
				return pkcs11.CKR_ATTRIBUTE_SENSITIVE
			}
			value, ok := key.attributes[attribute]
			if !ok {
				return pkcs11.CKR_ATTRIBUTE_TYPE_INVALID
			}
			values[attribute] = slices.Clone(value)
		}
		return 0
	})
	if err != nil {
		return nil, err
	}
	return values, nil
}

// key finds a key; the login is needed for it.
func (c fakeCalls) key(o p11.Object) *fakeKey {
	c.hsm.mu.Lock()
	defer c.hsm.mu.Unlock()
	if !c.loggedIn {
		return nil
	}
	return c.hsm.keys[o]
}

func (c fakeCalls) DestroyObject(s p11.Session, o p11.Object) error {
	return c.in(s, fakeCall{function: "C_DestroyObject", key: o}, time.Time{}, func(*fakeSession) p11.RV {
		c.hsm.mu.Lock()
		defer c.hsm.mu.Unlock()
		delete(c.hsm.keys, o)
		return 0
	})
}

func (c fakeCalls) EncryptGCM(until time.Time, s p11.Session, key p11.Object, nonce, associated, in []byte) ([]byte, error) {
	return c.gcm("C_Encrypt", until, s, key, nonce, associated, in, func(aead cipher.AEAD) ([]byte, error) {
		return aead.Seal(nil, nonce, in, associated), nil
	})
}

func (c fakeCalls) DecryptGCM(until time.Time, s p11.Session, key p11.Object, nonce, associated, in []byte) ([]byte, error) {
	return c.gcm("C_Decrypt", until, s, key, nonce, associated, in, func(aead cipher.AEAD) ([]byte, error) {
		return aead.Open(nil, nonce, in, associated)
	})
}

func (c fakeCalls) gcm(function string, until time.Time, s p11.Session, key p11.Object, nonce, associated, in []byte, f func(cipher.AEAD) ([]byte, error)) (out []byte, err error) {
	if err := p11.CheckSizes(function+"Init", nonce, associated, in); err != nil {
		return nil, err
	}
	var result []byte
	err = c.use(s, function, key, until, func(secret []byte) p11.RV {
		block, err := aes.NewCipher(secret)
		if err != nil {
			return pkcs11.CKR_KEY_SIZE_RANGE
		}
		aead, err := cipher.NewGCMWithNonceSize(block, len(nonce))
		if err != nil {
			return pkcs11.CKR_MECHANISM_PARAM_INVALID
		}
		if result, err = f(aead); err != nil {
			return pkcs11.CKR_GENERAL_ERROR // as SoftHSM
		}
		return 0
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// EncryptGCMOwnIV: this token makes no IV, and leaves what it was given.
func (c fakeCalls) EncryptGCMOwnIV(until time.Time, s p11.Session, key p11.Object, iv, associated, in []byte) ([]byte, error) {
	if len(iv) > p11.MaxOwnIV {
		return nil, &p11.Error{Function: "C_EncryptInit", RV: pkcs11.CKR_DATA_LEN_RANGE}
	}
	out, err := c.EncryptGCM(until, s, key, iv, associated, in)
	if err != nil {
		clear(iv)
	}
	return out, err
}

func (c fakeCalls) EncryptECB(until time.Time, s p11.Session, key p11.Object, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_EncryptInit", []byte{0}, []byte{0}, in); err != nil {
		return nil, err
	}
	out := make([]byte, len(in))
	err := c.use(s, "C_Encrypt", key, until, func(secret []byte) p11.RV {
		block, err := aes.NewCipher(secret)
		if err != nil || len(in)%aes.BlockSize != 0 {
			return pkcs11.CKR_DATA_LEN_RANGE
		}
		for i := 0; i < len(in); i += aes.BlockSize {
			block.Encrypt(out[i:], in[i:])
		}
		return 0
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c fakeCalls) HMAC(until time.Time, s p11.Session, key p11.Object, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_SignInit", []byte{0}, []byte{0}, in); err != nil {
		return nil, err
	}
	if c.hsm.isAES(key) {
		return nil, &p11.Error{Function: "C_SignInit", RV: pkcs11.CKR_KEY_TYPE_INCONSISTENT}
	}
	var result []byte
	err := c.use(s, "C_Sign", key, until, func(secret []byte) p11.RV {
		mac := hmac.New(sha256.New, secret)
		mac.Write(in)
		result = mac.Sum(nil)
		return 0
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (h *fakeHSM) isAES(o p11.Object) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := h.keys[o]
	return key != nil && binary.NativeEndian.Uint64(key.attributes[pkcs11.CKA_KEY_TYPE]) == pkcs11.CKK_AES
}

// use makes an Init and its operation: one call, but for the name of an error of the Init.
func (c fakeCalls) use(s p11.Session, function string, o p11.Object, until time.Time, f func(secret []byte) p11.RV) error {
	inInit := false
	err := c.in(s, fakeCall{function: function, key: o}, until, func(*fakeSession) p11.RV {
		key := c.key(o)
		if key == nil {
			inInit = true
			return pkcs11.CKR_OBJECT_HANDLE_INVALID
		}
		return f(key.secret)
	})
	if failed, ok := errors.AsType[*p11.Error](err); ok && (inInit || failed.RV == pkcs11.CKR_SESSION_HANDLE_INVALID) {
		return &p11.Error{Function: function + "Init", RV: failed.RV}
	}
	return err
}

var (
	_ workerProcess = (*fakeWorker)(nil)
	_ workerCalls   = fakeCalls{}
)
