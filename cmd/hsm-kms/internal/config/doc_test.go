package config_test

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
)

const manual = "../../../../docs/configuration.md"

// TestManual holds the manual against the code: a row for every field, in the order of the structs, with the default
// that is really in force, and a sample that loads.
func TestManual(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	var rows [][2]string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\|").FindAllStringSubmatch(string(text), -1) {
		rows = append(rows, [2]string{m[1], strings.Trim(m[2], "`")})
	}
	if diff := cmp.Diff(fields(t), rows); diff != "" {
		t.Errorf("rows of the manual (-code +manual):\n%s", diff)
	}
	_, sample, _ := strings.Cut(string(text), "```yaml\n")
	sample, _, _ = strings.Cut(sample, "```")
	if _, body, _ := strings.Cut(config.Example, "\n"); body != sample {
		t.Errorf("config example prints another sample than the manual has:\n%s", cmp.Diff(sample, body))
	}
	want := minimalConfig()
	want.Socket.AllowedUIDs = []uint32{0} // the sample shows the form
	want.KeyRing = config.PlaceholderRing // which nobody may keep
	if diff := cmp.Diff(want, parse(t, sample)); diff != "" {
		t.Errorf("sample of the manual (-defaults +sample):\n%s", diff)
	}
}

// fields returns each field that a file can have with its default, as the manual writes them.
func fields(t *testing.T) [][2]string {
	t.Helper()
	var rows [][2]string
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for f, value := range v.Fields() {
			tag, _, optional := strings.Cut(f.Tag.Get("yaml"), ",")
			name := prefix + tag
			switch {
			case f.Type == reflect.TypeFor[[]config.Token]():
				rows = append(rows, [2]string{name, "required"})
				if value.Len() > 0 { // the fields of a token are explained once
					walk(name+"[].", value.Index(0))
				}
			case f.Type == reflect.TypeFor[[]config.ReadRing]():
				rows = append(rows, [2]string{name, "[]"})
				var ring config.ReadRing
				if err := yaml.Unmarshal([]byte("{}"), &ring); err != nil {
					t.Fatal(err)
				}
				walk(name+"[].", reflect.ValueOf(ring))
			case f.Type.Kind() == reflect.Struct:
				walk(name+".", value)
			default:
				rows = append(rows, [2]string{name, defaultText(t, name, value, optional)})
			}
		}
	}
	walk("", reflect.ValueOf(minimalConfig()).Elem())
	return rows
}

func defaultText(t *testing.T, name string, value reflect.Value, optional bool) string {
	t.Helper()
	switch name {
	case "apiVersion", "kind", "keyRing", "readRings[].keyRing", "tokens[].name", "tokens[].module", "tokens[].pinFile":
		return "required"
	case "socket.allowedUIDs":
		return "root and our own uid"
	}
	if optional {
		return "none"
	}
	if text, ok := value.Interface().(fmt.Stringer); ok {
		return text.String()
	}
	out, err := yaml.Marshal(value.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
