package main

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/ThalesIgnite/crypto11"
	kmsapi "k8s.io/kms/apis/v2"
)

// usual is a plugin built the usual way: crypto11's AEAD in the handlers, a nonce from the token, as many sessions as
// crypto11 opens by itself. It stands for the peers.
type usual struct {
	empty
	aead   cipher.AEAD
	nonces io.Reader
}

func newUsual(o *options, nothing empty) (*usual, error) {
	pin, err := os.ReadFile(o.pinFile)
	if err != nil {
		return nil, err
	}
	token, err := crypto11.Configure(&crypto11.Config{Path: o.module, TokenLabel: o.label, Pin: strings.TrimSpace(string(pin))})
	if err != nil {
		return nil, fmt.Errorf("opening the token: %w", err)
	}
	key, err := token.FindKey(nil, []byte(ringName))
	if err == nil && key == nil {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("finding the key: %w", err)
	}
	u := &usual{empty: nothing}
	if u.aead, err = key.NewGCM(); err == nil {
		u.nonces, err = token.NewRandomReader()
	}
	return u, err
}

func (u *usual) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	nonce := make([]byte, u.aead.NonceSize())
	if _, err := io.ReadFull(u.nonces, nonce); err != nil {
		return nil, err
	}
	return &kmsapi.EncryptResponse{Ciphertext: u.aead.Seal(nonce, nonce, r.Plaintext, make([]byte, bareAssociated)), KeyId: u.keyID}, nil
}

func (u *usual) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	n := u.aead.NonceSize()
	dek, err := u.aead.Open(nil, r.Ciphertext[:n], r.Ciphertext[n:], make([]byte, bareAssociated))
	return &kmsapi.DecryptResponse{Plaintext: dek}, err
}
