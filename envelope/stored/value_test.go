package stored_test

import (
	"encoding/binary"
	"errors"
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	upstream "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// object is what kube-apiserver itself would store.
func object(t testing.TB, change func(*upstream.EncryptedObject)) []byte {
	t.Helper()
	o := &upstream.EncryptedObject{
		EncryptedData: []byte("data"), KeyID: "ring/x01/0011223344556677", EncryptedDEKSource: []byte("wrapped"),
		EncryptedDEKSourceType: upstream.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED,
	}
	if change != nil {
		change(o)
	}
	b, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	t.Parallel()
	good := string(object(t, nil))
	v1 := string(binary.BigEndian.AppendUint16(nil, 3)) + "dek" + "data"
	for name, c := range map[string]struct {
		value string
		text  string // of the provider
		bad   string // what the error says; empty: none
	}{
		"protobuf":            {"k8s\x00\x0a\x0c", "", ""},
		"JSON":                {"{}", "", ""},
		"CBOR":                {"\xd9\xd9\xf7\xa0", "", ""},
		"empty":               {"", "", ""},
		"not quite encrypted": {"k8s:enc", "", ""},
		"KMS v2":              {"k8s:enc:kms:v2:hsm-kms:" + good, "kms:v2:hsm-kms", ""},
		"KMS v1":              {"k8s:enc:kms:v1:old:" + v1, "kms:v1:old", ""},
		"aescbc":              {"k8s:enc:aescbc:v1:key1:0123456789abcdef", "aescbc:v1:key1", ""},
		"aesgcm":              {"k8s:enc:aesgcm:v1:key1:0123456789abcdef", "aesgcm:v1:key1", ""},
		"secretbox":           {"k8s:enc:secretbox:v1:key1:0", "secretbox:v1:key1", ""},
		"prefix alone":        {"k8s:enc:", "", "no known provider"},
		"prefix cut":          {"k8s:enc:kms:v", "", "no known provider"},
		"provider cut":        {"k8s:enc:kms:v2", "", "no known provider"},
		"name missing":        {"k8s:enc:kms:v2:", "", "ends inside the prefix"},
		"name cut":            {"k8s:enc:kms:v2:hsm", "", "ends inside the prefix"},
		"name empty":          {"k8s:enc:kms:v2::" + good, "", "names no provider"},
		"unknown":             {"k8s:enc:rot13:v1:key:abc", "", "no known provider"},
		"KMS v3":              {"k8s:enc:kms:v3:hsm-kms:" + good, "", "no known provider"},
		"no object":           {"k8s:enc:kms:v2:hsm-kms:", "", "no data"},
		"object cut":          {"k8s:enc:kms:v2:hsm-kms:" + good[:len(good)-4], "", "EncryptedObject"},
		"no aescbc data":      {"k8s:enc:aescbc:v1:key1:", "", "nothing follows"},
		"KMS v1 length cut":   {"k8s:enc:kms:v1:old:\x00", "", "inside the length"},
		"KMS v1 DEK cut":      {"k8s:enc:kms:v1:old:\x00\x09dek", "", "9 bytes is announced"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, err := stored.Parse([]byte(c.value))
			if c.bad != "" {
				if !errors.Is(err, stored.ErrUndecodable) || !strings.Contains(err.Error(), c.bad) {
					t.Errorf("Parse = %+v, %v; want ErrUndecodable with %q", v, err, c.bad)
				}
				return
			}
			if err != nil || v.Text() != c.text {
				t.Errorf("Parse = %q, %v; want %q", v.Text(), err, c.text)
			}
		})
	}
}

func TestParseObjectFields(t *testing.T) {
	t.Parallel()
	b := object(t, func(o *upstream.EncryptedObject) {
		o.Annotations = map[string][]byte{"a.example.com": []byte("1"), "b.example.com": nil}
	})
	o, err := stored.ParseObject(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(o.Data) != "data" || o.KeyID != "ring/x01/0011223344556677" || string(o.DEKSource) != "wrapped" || o.Type != stored.Seed ||
		len(o.Annotations) != 2 || string(o.Annotations["a.example.com"]) != "1" {
		t.Errorf("ParseObject = %+v", o)
	}
}

// Two objects share a DEK exactly when the API server would ask the plugin the same.
func TestDEK(t *testing.T) {
	t.Parallel()
	dek := func(change func(*upstream.EncryptedObject)) stored.DEK {
		o, err := stored.ParseObject(object(t, change))
		if err != nil {
			t.Fatal(err)
		}
		return o.DEK()
	}
	base := dek(nil)
	if again := dek(func(o *upstream.EncryptedObject) { o.EncryptedData = []byte("other") }); again != base {
		t.Error("other data under the same DEK gives another DEK")
	}
	for name, change := range map[string]func(*upstream.EncryptedObject){
		"source":     func(o *upstream.EncryptedObject) { o.EncryptedDEKSource = []byte("wrappee") },
		"key_id":     func(o *upstream.EncryptedObject) { o.KeyID += "0" },
		"type":       func(o *upstream.EncryptedObject) { o.EncryptedDEKSourceType = 0 },
		"annotation": func(o *upstream.EncryptedObject) { o.Annotations = map[string][]byte{"a.example.com": nil} },
		"boundary": func(o *upstream.EncryptedObject) {
			o.EncryptedDEKSource, o.KeyID = []byte("wrapped"+o.KeyID[:1]), o.KeyID[1:]
		},
	} {
		if dek(change) == base {
			t.Errorf("another %s gives the same DEK", name)
		}
	}
}

// ParseObject decodes what the API server decodes, to the same, and refuses the rest.
func FuzzParseObject(f *testing.F) {
	f.Add(object(f, nil))
	f.Add(object(f, func(o *upstream.EncryptedObject) { o.Annotations = map[string][]byte{"a.example.com.": []byte("x")} }))
	f.Add(object(f, func(o *upstream.EncryptedObject) { o.Annotations = map[string][]byte{"": {}} }))
	f.Add(object(f, func(o *upstream.EncryptedObject) { o.EncryptedDEKSourceType = -1 }))
	f.Add(object(f, func(o *upstream.EncryptedObject) { o.EncryptedDEKSource = make([]byte, 1025) }))
	f.Add(append(object(f, nil), object(f, func(o *upstream.EncryptedObject) { o.KeyID = "second" })...))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		var want upstream.EncryptedObject
		wantErr := proto.Unmarshal(b, &want)
		if wantErr == nil {
			wantErr = kmsv2.ValidateEncryptedObject(&want)
		}
		got, err := stored.ParseObject(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("ParseObject: %v; the API server: %v", err, wantErr)
		}
		if err != nil {
			return
		}
		same := func(a, b []byte) bool { return string(a) == string(b) }
		if string(got.Data) != string(want.EncryptedData) || got.KeyID != want.KeyID || !same(got.DEKSource, want.EncryptedDEKSource) ||
			int32(got.Type) != int32(want.EncryptedDEKSourceType) || !maps.EqualFunc(got.Annotations, want.Annotations, same) {
			t.Errorf("ParseObject = %+v, want %v", got, &want)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, prefix := range []string{"", "k8s:enc:kms:v2:n:", "k8s:enc:kms:v1:n:", "k8s:enc:aescbc:v1:n:", "k8s:enc:kms:v2"} {
		f.Add([]byte(prefix + string(object(f, nil))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := stored.Parse(b)
		switch plain := !strings.HasPrefix(string(b), "k8s:enc:"); {
		case err != nil && (plain || !errors.Is(err, stored.ErrUndecodable)):
			t.Errorf("error = %v", err)
		case err == nil && plain != (v.Provider == stored.Plain):
			t.Errorf("provider %q of %.40q", v.Provider, b)
		case err == nil && !strings.HasSuffix(string(b), string(v.Rest)):
			t.Errorf("%.40q is not the end of the value", v.Rest)
		}
	})
}
