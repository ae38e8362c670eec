package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// schema parses a file, compares it with the structs before they are filled, and notes the line of each field. The decoder
// itself would stop at less, name no field, and take a field without a value for one that is not there.
type schema struct {
	*problems
	broken bool // something that makes a reading of the rest pointless
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

// check walks node, which must hold a value of type t, and its children. path is the field's name.
func (s *schema) check(node *yaml.Node, path string, t reflect.Type) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch scalar := reflect.PointerTo(t).Implements(textType); {
	case node.Kind == yaml.AliasNode || node.Anchor != "" || node.Style&yaml.TaggedStyle != 0:
		s.broken = true
		s.reportAt(node.Line, path, "anchors, aliases and tags are not accepted", "write the value out")
	case node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null":
		s.report(path, "has no value", `remove the line to get the default, or write "" for an empty text and [] for an empty list`)
	case !scalar && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map):
		s.checkMapping(node, path, t)
	case !scalar && t.Kind() == reflect.Slice:
		s.checkList(node, path, t)
	default:
		s.checkScalar(node, path, t)
	}
}

func (s *schema) checkMapping(node *yaml.Node, path string, t reflect.Type) {
	if node.Kind != yaml.MappingNode {
		s.report(path, "is not a mapping", "write `field: value` lines: "+strings.Join(fieldNames(t), ", "))
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		field := strings.TrimPrefix(path+"."+key.Value, ".")
		valueType, ok := typeOfField(t, key.Value)
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 || !printable(key.Value):
			s.broken = true
			s.reportAt(key.Line, path, "has a key that is not a plain name", "fields here are "+strings.Join(fieldNames(t), ", "))
		case s.has(field):
			s.broken = true
			s.reportAt(key.Line, field, fmt.Sprintf("is there twice, first in line %d", s.lines[field]), "remove one of the two")
		case !ok:
			s.lines[field] = key.Line
			s.report(field, "unknown field", "fields here are "+strings.Join(fieldNames(t), ", "))
		default:
			s.lines[field] = key.Line
			s.check(value, field, valueType)
		}
	}
}

func (s *schema) checkList(node *yaml.Node, path string, t reflect.Type) {
	if node.Kind != yaml.SequenceNode {
		s.report(path, "is not a list", "write [a, b], or one `- item` a line")
		return
	}
	for i, item := range node.Content {
		field := fmt.Sprintf("%s[%d]", path, i)
		s.lines[field] = item.Line
		s.check(item, field, t.Elem())
	}
}

func (s *schema) checkScalar(node *yaml.Node, path string, t reflect.Type) {
	if node.Kind != yaml.ScalarNode {
		s.report(path, "is not a single value", valueHint(t))
		return
	}
	if !printable(node.Value) {
		s.report(path, "holds a line break or another control character", "write it in one line")
		return
	}
	if t.Kind() != reflect.Bool && t.Kind() != reflect.String && node.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 &&
		node.ShortTag() == "!!float" { // which the decoder would cut down to a whole number
		s.report(path, fmt.Sprintf("%q is a fraction", node.Value), valueHint(t))
		return
	}
	target := reflect.New(t).Interface()
	if text, ok := target.(encoding.TextUnmarshaler); ok {
		if err := text.UnmarshalText([]byte(node.Value)); err != nil {
			s.report(path, fmt.Sprintf("%q %v", node.Value, err), valueHint(t))
		}
	} else if err := node.Decode(target); err != nil {
		s.report(path, fmt.Sprintf("%q does not fit", node.Value), valueHint(t))
	}
}

// valueHint tells how a value of type t is written.
func valueHint(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Duration]():
		return "write a number with its unit, such as 30s or 1h"
	case reflect.TypeFor[FileMode]():
		return `write octal digits in quotes, as "0600"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "write true or false"
	case reflect.String:
		return "write one text"
	default:
		return "write a whole number, without quotes"
	}
}

// printable reports whether text can go into a log line and a path as it is.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar })
}

// fieldNames returns the names of a struct's fields as the file writes them, in the order of the struct.
func fieldNames(t reflect.Type) []string {
	if t.Kind() == reflect.Map {
		return []string{"NAME: value"}
	}
	var names []string
	for f := range t.Fields() {
		names = append(names, yamlName(f))
	}
	return names
}

// typeOfField is what the field of that name holds; in a map any name is one.
func typeOfField(t reflect.Type, name string) (reflect.Type, bool) {
	if t.Kind() == reflect.Map {
		return t.Elem(), true
	}
	f, ok := fieldByName(t, name)
	return f.Type, ok
}

func fieldByName(t reflect.Type, name string) (reflect.StructField, bool) {
	return t.FieldByNameFunc(func(goName string) bool {
		f, _ := t.FieldByName(goName)
		return yamlName(f) == name
	})
}

func yamlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return name
}
