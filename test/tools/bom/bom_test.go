package bom

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestWrite describes this test's own program twice.
func TestWrite(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	libc := Debian("libc6", "2.36-9+deb12u14", "amd64", "aa")
	var one, two bytes.Buffer
	for _, out := range []*bytes.Buffer{&one, &two} {
		if err := Write(out, program, "test.tar.gz", "v1.2.3", libc); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("not the same twice")
	}
	var made document
	if err := json.Unmarshal(one.Bytes(), &made); err != nil {
		t.Fatal(err)
	}
	if made.Format != "CycloneDX" || made.SpecVersion != "1.6" || !strings.HasPrefix(made.SerialNumber, "urn:uuid:") || len(made.SerialNumber) != len("urn:uuid:")+36 {
		t.Errorf("%+v", made)
	}
	refs := map[string]bool{}
	for _, c := range made.Components {
		if refs[c.Ref] || c.PURL == "" {
			t.Errorf("%+v", c)
		}
		refs[c.Ref] = true
	}
	if !refs["pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"] || len(made.Dependencies[0].DependsOn) != len(made.Components) {
		t.Errorf("%+v", made)
	}
	if made.Metadata.Component.Version != "v1.2.3" || len(made.Metadata.Component.Hashes) != 1 {
		t.Errorf("%+v", made.Metadata)
	}
	if err := Write(&one, []byte("no program"), "x", "v1"); err == nil {
		t.Error("what is no program was described")
	}
}
