package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestProvenance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"b", "a"} {
		files = append(files, filepath.Join(dir, name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := run(append([]string{"provenance", "-commit", "c0ffee", "-version", "v1", "-time", "0", "-toolchain", "go go1.26"}, files...), &out); err != nil {
		t.Fatal(err)
	}
	var made struct {
		Type    string `json:"_type"`
		Subject []struct {
			Name   string
			Digest map[string]string
		}
		PredicateType string
	}
	if err := json.Unmarshal(out.Bytes(), &made); err != nil {
		t.Fatal(err)
	}
	if made.Type != "https://in-toto.io/Statement/v1" || made.PredicateType != "https://slsa.dev/provenance/v1" || len(made.Subject) != 2 ||
		made.Subject[0].Name != "a" || made.Subject[0].Digest["sha256"] != "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" {
		t.Errorf("%s", out.String())
	}
	for _, args := range [][]string{nil, {"other"}, {"provenance"}, {"provenance", "/nonexistent"}, {"sbom", "-program", files[0]}} {
		if err := run(args, &out); err == nil {
			t.Errorf("%v passed", args)
		}
	}
}
