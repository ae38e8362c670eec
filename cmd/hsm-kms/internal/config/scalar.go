package config

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/internal/duration"
)

// Duration is a length of time, written as in 500ms, 30s, 1h30m, 7d. A number without a unit is an error.
type Duration time.Duration

// Std returns the length of time as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String leaves out the units that are zero.
func (d Duration) String() string { return duration.String(d.Std()) }

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := duration.Parse(string(text))
	if err != nil {
		return errors.New("is not a length of time")
	}
	*d = Duration(v)
	return nil
}

// UnmarshalYAML is UnmarshalText, with errors that let the decoder go on to the next field.
func (d *Duration) UnmarshalYAML(node *yaml.Node) error { return textFromNode(node, d.UnmarshalText) }

// FileMode is a file's permission bits, written in octal as chmod takes them, with or without quotes: "0600".
type FileMode fs.FileMode

// Perm returns the permission bits as the standard library has them.
func (m FileMode) Perm() fs.FileMode { return fs.FileMode(m).Perm() }

// String is four octal digits.
func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// MarshalText is String.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads three or four octal digits.
func (m *FileMode) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 8, 12)
	if err != nil || len(text) < 3 || len(text) > 4 {
		return errors.New("is not a file mode in octal")
	}
	*m = FileMode(v)
	return nil
}

// UnmarshalYAML is UnmarshalText, with errors that let the decoder go on to the next field.
func (m *FileMode) UnmarshalYAML(node *yaml.Node) error { return textFromNode(node, m.UnmarshalText) }

// textFromNode hands a scalar's text, as it stands in the file, to unmarshal. Text, because YAML would take 0600 for a
// number. A *yaml.TypeError is the one kind of error after which the decoder goes on.
func textFromNode(node *yaml.Node, unmarshal func([]byte) error) error {
	err := errors.New("is not a single value")
	if node.Kind == yaml.ScalarNode {
		err = unmarshal([]byte(node.Value))
	}
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", node.Line, err)}}
	}
	return nil
}
