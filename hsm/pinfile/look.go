package pinfile

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// tagBits is the length of a tag: enough that another PIN has another tag, and too little to find a long PIN by it.
const tagBits = 20

// padTag is no PIN's: the tag of whatever is entered at a PIN pad, which nobody here sees.
const padTag = 1 << tagBits

// PINPad is what is known of a PIN that is entered at a PIN pad.
func PINPad() Look { return Look{Tag: padTag} }

// Look is what may be known of a PIN outside the process that reads it.
type Look struct {
	// Tag is the first 20 bits of HMAC-SHA-256(key, PIN).
	Tag uint32 `json:"tag"`
	// Blank: the PIN begins or ends with a blank.
	Blank bool `json:"blank,omitempty"`
}

// ReadState is Read of the file in just this state. Another one is ErrChanging.
func ReadState(file Identity) (*PIN, error) {
	pin, now, err := Read(file.Path, file.Rules)
	if err != nil {
		return nil, err
	}
	if now != file {
		pin.Wipe()
		return nil, fmt.Errorf("reading PIN from %s: %w", file.Path, ErrChanging)
	}
	return pin, nil
}

// LookAt reads the PIN and returns what may be known of it, under a key.
func LookAt(file Identity, key []byte) (Look, error) {
	pin, err := ReadState(file)
	if err != nil {
		return Look{}, err
	}
	defer pin.Wipe()
	mac := hmac.New(sha256.New, key)
	mac.Write(pin.Bytes())
	return Look{
		Tag:   binary.BigEndian.Uint32(mac.Sum(nil)) >> (32 - tagBits),
		Blank: len(bytes.Trim(pin.Bytes(), " \t")) != len(pin.Bytes()),
	}, nil
}
