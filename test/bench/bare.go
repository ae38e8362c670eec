package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// The bare pairs of calls. HMAC is what profile hmac-kdf makes for Encrypt and for Decrypt.
const (
	pairEncrypt = "C_EncryptInit+C_Encrypt"
	pairDecrypt = "C_DecryptInit+C_Decrypt"
	pairHMAC    = "C_SignInit+C_Sign"
)

// The lengths of what the plugin hands to the token: the associated data (domain, header, nonce, key_id) and the input
// of the key derivation (domain, header, salt).
const (
	bareAssociated = 19 + 2 + 12 + emptyKeyID
	bareKDFInput   = 14 + 2 + 32
)

// bareRequest is one line from the parent to the process that makes the bare calls; bareAnswer is the line back.
type bareRequest struct {
	Pair string `json:"pair"`
	Load load   `json:"load"`
}

type bareAnswer struct {
	Sample sample `json:"sample"`
	Error  string `json:"error,omitempty"`
}

// bare is the parent's side of that process: what is measured of it is R.
type bare struct {
	pid  int
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

// startBare starts the process on the token, of which the ring's only key is used, and waits until it has logged in.
// It dials back to a socket in dir, so that nobody has to poll for it.
func startBare(ctx context.Context, self, dir string, token *softhsm.Token) (*bare, error) {
	socket := filepath.Join(dir, "bare.sock")
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listening for the bare process: %w", err)
	}
	defer func() { _ = listener.Close() }()
	child, err := proc.Start(proc.Spec{
		Name: "bare", Path: self, Env: token.Env(), Log: filepath.Join(dir, "bare.log"),
		Args: append([]string{"-role", "bare"}, tokenArgs(socket, token)...),
	})
	if err != nil {
		return nil, err
	}
	go func() { // a child that ends early would leave Accept waiting
		<-child.Done()
		_ = listener.Close()
	}()
	conn, err := listener.Accept()
	if err != nil {
		return nil, fmt.Errorf("starting the bare process: %w\n%s", err, child.Tail(5))
	}
	return &bare{child.PID(), conn, json.NewDecoder(conn), json.NewEncoder(conn)}, nil
}

func (b *bare) measure(pair string, l load) (sample, error) {
	if err := b.out.Encode(bareRequest{pair, l}); err != nil {
		return sample{}, fmt.Errorf("asking the bare process for %s: %w", pair, err)
	}
	var answer bareAnswer
	if err := b.in.Decode(&answer); err != nil {
		return sample{}, fmt.Errorf("hearing of %s from the bare process: %w", pair, err)
	}
	if answer.Error != "" {
		return sample{}, fmt.Errorf("measuring %s: %w", pair, errors.New(answer.Error))
	}
	return answer.Sample, nil
}

// close ends the process: it reads the end of its requests.
func (b *bare) close() { _ = b.conn.Close() }

// bareCalls is the child's side: the module, logged in, with the ring's key and a session for each client.
type bareCalls struct {
	library  p11.API
	slot     uint
	key      p11.Object
	sessions []p11.Session
}

// runBare is the child process: it measures what it is asked for until the parent closes the connection.
func runBare(o *options) error {
	library, err := loadModule(o)
	if err != nil {
		return err
	}
	calls, err := openBare(o, library)
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", o.socket)
	if err != nil {
		return fmt.Errorf("dialling the parent: %w", err)
	}
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var request bareRequest
		if in.Decode(&request) != nil {
			return nil // the parent has ended, or has no more to ask
		}
		var answer bareAnswer
		answer.Sample, err = calls.measure(request)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			return fmt.Errorf("answering the parent: %w", err)
		}
	}
}

func openBare(o *options, library p11.API) (*bareCalls, error) {
	if err := library.Initialize(); err != nil {
		return nil, err
	}
	slots, err := library.Slots()
	if err != nil {
		return nil, err
	}
	c := &bareCalls{library: library}
	found := false
	for _, slot := range slots {
		info, err := library.TokenInfo(slot)
		if err != nil {
			return nil, err
		}
		if strings.TrimRight(info.Label, " ") == o.label {
			c.slot, found = slot, true
		}
	}
	if !found {
		return nil, fmt.Errorf("the module shows no token %q", o.label)
	}
	return c, c.logIn(o.pinFile)
}

func (c *bareCalls) logIn(pinFile string) error {
	file, err := pinfile.Stat(pinFile, pinfile.Rules{})
	if err != nil {
		return fmt.Errorf("reading the PIN file: %w", err)
	}
	if err := c.enough(1); err != nil {
		return err
	}
	if err := c.library.Login(c.sessions[0], file); err != nil {
		return err
	}
	keys, err := c.library.FindSecretKeys(c.sessions[0], ringName, 2)
	if err != nil {
		return err
	}
	if len(keys) != 1 {
		return fmt.Errorf("the ring %s has %d keys, one is wanted", ringName, len(keys))
	}
	c.key = keys[0]
	return nil
}

// enough opens sessions until there are n.
func (c *bareCalls) enough(n int) error {
	for len(c.sessions) < n {
		s, err := c.library.OpenSession(c.slot, false)
		if err != nil {
			return err
		}
		c.sessions = append(c.sessions, s)
	}
	return nil
}

func (c *bareCalls) measure(r bareRequest) (sample, error) {
	if err := c.enough(r.Load.Clients); err != nil {
		return sample{}, err
	}
	nonce, associated, dek, kdf := random(12), random(bareAssociated), random(dekSize), random(bareKDFInput)
	var sealed []byte
	if r.Pair == pairDecrypt {
		var err error
		if sealed, err = c.library.EncryptGCM(time.Time{}, c.sessions[0], c.key, nonce, associated, dek); err != nil {
			return sample{}, err
		}
	}
	return measure.Drive(context.Background(), r.Load, func(client, _ int) (err error) {
		switch s := c.sessions[client]; r.Pair {
		case pairEncrypt:
			// One nonce for all: this key protects nothing, and drawing nonces is the plugin's work, not the token's.
			_, err = c.library.EncryptGCM(time.Time{}, s, c.key, nonce, associated, dek)
		case pairDecrypt:
			_, err = c.library.DecryptGCM(time.Time{}, s, c.key, nonce, associated, sealed)
		case pairHMAC:
			_, err = c.library.HMAC(time.Time{}, s, c.key, kdf)
		}
		return err
	})
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
