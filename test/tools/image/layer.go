package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/tools/bom"
)

// layer is one layer of the image: files in the order of their names, all of root and of one time, so that equal content gives
// equal bytes.
type layer struct {
	time     time.Time
	files    map[string]file
	glibc    string // version of the C library in it; "": none
	packages []bom.Component
}

type file struct {
	mode    int64
	content []byte
	link    string // target of a symbolic link
	folder  bool
}

func newLayer(t time.Time) *layer { return &layer{time: t, files: map[string]file{}} }

// add adds a file, and the folders that it is in. Two files of one name are an error.
func (l *layer) add(name string, mode int64, content []byte) error {
	return l.put(name, file{mode: mode, content: content})
}

func (l *layer) put(name string, f file) error {
	if old, found := l.files[name]; found && !(old.folder && f.folder) {
		return fmt.Errorf("%s is there twice", name)
	}
	l.files[name] = f
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if old, found := l.files[dir]; found && !old.folder {
			return fmt.Errorf("%s is a folder and a file", dir)
		} else if !found {
			l.files[dir] = file{mode: 0o755, folder: true}
		}
	}
	return nil
}

// blob is content by its digest.
type blob struct {
	digest string // sha256:HEX
	bytes  []byte
}

func blobOf(content []byte) blob {
	sum := sha256.Sum256(content)
	return blob{"sha256:" + hex.EncodeToString(sum[:]), content}
}

// pack returns the compressed tar, and the digest of the tar.
func (l *layer) pack() (blob, string, error) {
	var plain, zipped bytes.Buffer
	archive := tar.NewWriter(&plain)
	names := make([]string, 0, len(l.files))
	for name := range l.files {
		names = append(names, name)
	}
	slices.Sort(names) // a folder comes before what is in it
	for _, name := range names {
		f := l.files[name]
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode, Size: int64(len(f.content)), ModTime: l.time, Format: tar.FormatPAX}
		switch {
		case f.folder:
			header.Typeflag, header.Name = tar.TypeDir, name+"/"
		case f.link != "":
			header.Typeflag, header.Linkname = tar.TypeSymlink, f.link
		}
		if err := archive.WriteHeader(header); err != nil {
			return blob{}, "", fmt.Errorf("packing %s: %w", name, err)
		}
		if _, err := archive.Write(f.content); err != nil {
			return blob{}, "", fmt.Errorf("packing %s: %w", name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return blob{}, "", fmt.Errorf("packing a layer: %w", err)
	}
	zip := gzip.NewWriter(&zipped)
	if _, err := zip.Write(plain.Bytes()); err != nil {
		return blob{}, "", fmt.Errorf("compressing a layer: %w", err)
	}
	if err := zip.Close(); err != nil {
		return blob{}, "", fmt.Errorf("compressing a layer: %w", err)
	}
	return blobOf(zipped.Bytes()), blobOf(plain.Bytes()).digest, nil
}

// fits refuses a program that was built with a newer C library than the image has: it would not start.
func fits(program []byte, glibc string) error {
	parsed, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("reading the program: %w", err)
	}
	symbols, err := parsed.ImportedSymbols()
	if err != nil {
		return fmt.Errorf("reading the program's symbols: %w", err)
	}
	for _, s := range symbols {
		if version, found := strings.CutPrefix(s.Version, "GLIBC_"); found && compareVersions(version, glibc) > 0 {
			return fmt.Errorf("the program was built with a newer C library than the image's %s: %s needs %s (make the release on Debian 12)", glibc, s.Name, version)
		}
	}
	return nil
}

// compareVersions compares numbers with dots.
func compareVersions(a, b string) int {
	return slices.CompareFunc(strings.Split(a, "."), strings.Split(b, "."), func(x, y string) int {
		m, _ := strconv.Atoi(x)
		n, _ := strconv.Atoi(y)
		return cmp.Compare(m, n)
	})
}
