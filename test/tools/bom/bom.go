// Package bom writes what is in a program that Go built, and beside it, in the form of CycloneDX 1.6. It takes nothing from the
// clock or the machine, so that equal programs give equal lists.
package bom

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The parts of CycloneDX 1.6 that are used.
type (
	document struct {
		Schema       string       `json:"$schema"`
		Format       string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		SerialNumber string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []Component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Component Component `json:"component"`
	}
	Component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		PURL       string     `json:"purl"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

// Debian is a Debian package with its checksum.
func Debian(name, version, arch, sum string) Component {
	c := library(name, version, "pkg:deb/debian/"+name+"@"+strings.ReplaceAll(version, "+", "%2B")+"?arch="+arch)
	c.Hashes = []hash{{"SHA-256", sum}}
	return c
}

// Write describes the program, which is in the file of that name, by what Go wrote into it, and what is in the file besides.
func Write(out io.Writer, program []byte, name, version string, besides ...Component) error {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(program)
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	components := []Component{library("std", goVersion, "pkg:golang/std@"+goVersion)}
	for _, m := range info.Deps {
		for m.Replace != nil {
			m = m.Replace
		}
		c := library(m.Path, m.Version, "pkg:golang/"+m.Path+"@"+m.Version)
		if m.Sum != "" {
			c.Properties = []property{{"go:sum", m.Sum}}
		}
		components = append(components, c)
	}
	components = append(components, besides...)
	root := Component{
		Type: "application", Ref: name, Name: "hsm-kms", Version: version, PURL: "pkg:github/hsm-kms/hsm-kms@" + version,
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}},
	}
	for _, s := range info.Settings {
		if slices.Contains([]string{"GOOS", "GOARCH", "GOFIPS140", "CGO_ENABLED", "DefaultGODEBUG"}, s.Key) {
			root.Properties = append(root.Properties, property{"go:" + s.Key, s.Value})
		}
	}
	all := dependency{Ref: root.Ref, DependsOn: []string{}}
	for _, c := range components {
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	return e.Encode(document{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		SerialNumber: serialNumber(name, sum[:]), Metadata: metadata{root}, Components: components, Dependencies: []dependency{all},
	})
}

func library(name, version, purl string) Component {
	return Component{Type: "library", Ref: purl, Name: name, Version: version, PURL: purl}
}

// serialNumber is a UUID of version 8, made of a digest: a random one would be another in each build.
func serialNumber(name string, sum []byte) string {
	of := sha256.Sum256(append([]byte(name), sum...))
	of[6], of[8] = of[6]&0x0f|0x80, of[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", of[:4], of[4:6], of[6:8], of[8:10], of[10:16])
}
