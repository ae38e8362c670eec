// Command image makes an OCI image of each release archive in dist/, from nothing: the program, and the libraries of the
// Debian packages that debian.txt pins by checksum. No Docker is needed. The image is an OCI layout in a tar file, as podman,
// skopeo and ctr read it; equal release archives give equal images.
//
// Packages are kept in the cache folder of the tests (kubebin.CacheRoot), by checksum. xz must be installed.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/hsm-kms/hsm-kms/test/tools/bom"
)

func main() {
	name := flag.String("name", "localhost/hsm-kms", "name of the image, without a tag")
	dist := flag.String("dist", "dist", "folder of make release")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := makeAll(ctx, *dist, *name)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// archiveName is how make release names an archive.
var archiveName = regexp.MustCompile(`^hsm-kms-(.+)-linux-(amd64|arm64)\.tar\.gz$`)

// makeAll makes the image of each archive, and adds its checksum to SHA256SUMS.
func makeAll(ctx context.Context, dist, name string) error {
	archives, err := filepath.Glob(filepath.Join(dist, "hsm-kms-*.tar.gz"))
	if err != nil || len(archives) == 0 {
		return errors.Join(err, fmt.Errorf("%s holds no release archive: make release", dist))
	}
	sums, err := os.OpenFile(filepath.Join(dist, "SHA256SUMS"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("opening the checksums of the release: %w", err)
	}
	defer sums.Close()
	for _, archive := range archives {
		match := archiveName.FindStringSubmatch(filepath.Base(archive))
		if match == nil {
			continue
		}
		file := strings.TrimSuffix(archive, ".tar.gz") + ".oci.tar"
		if err := makeImage(ctx, archive, file, name, match[1], match[2]); err != nil {
			return fmt.Errorf("making %s: %w", file, err)
		}
		for _, made := range []string{file, file + ".cdx.json"} {
			content, err := os.ReadFile(made) //nolint:gosec // just written
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(io.MultiWriter(sums, os.Stdout), "%x  %s\n", sha256.Sum256(content), filepath.Base(made)); err != nil {
				return fmt.Errorf("writing the checksum: %w", err)
			}
		}
	}
	return sums.Close()
}

// makeImage writes the image, and its SBOM beside it.
func makeImage(ctx context.Context, archive, file, name, version, arch string) error {
	rel, err := readRelease(archive)
	if err != nil {
		return err
	}
	layers := make([]*layer, 2) // the libraries change more seldom than the program
	if layers[0], err = libraries(ctx, arch, rel.time); err != nil {
		return err
	}
	if err := fits(rel.program, layers[0].glibc); err != nil {
		return err
	}
	layers[1] = newLayer(rel.time)
	if err := layers[1].add("usr/local/bin/hsm-kms", 0o755, rel.program); err != nil {
		return err
	}
	im := image{name: name + ":" + strings.ReplaceAll(version, "+", "-"), arch: arch, version: version, commit: rel.commit, created: rel.time}
	content, err := im.archive(layers)
	if err != nil {
		return err
	}
	var sbom bytes.Buffer
	if err := bom.Write(&sbom, rel.program, filepath.Base(file), version, layers[0].packages...); err != nil {
		return fmt.Errorf("describing it: %w", err)
	}
	if err := os.WriteFile(file+".cdx.json", sbom.Bytes(), 0o644); err != nil { //nolint:gosec // a release is for all
		return err
	}
	return os.WriteFile(file, content, 0o644) //nolint:gosec // a release is for all
}

// release is what an image takes of an archive of make release.
type release struct {
	program []byte
	commit  string
	time    time.Time // of the commit
}

func readRelease(path string) (release, error) {
	in, err := os.Open(path) //nolint:gosec // of make release
	if err != nil {
		return release{}, err
	}
	defer in.Close()
	unzipped, err := gzip.NewReader(in)
	if err != nil {
		return release{}, fmt.Errorf("reading %s: %w", path, err)
	}
	var rel release
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return release{}, fmt.Errorf("reading %s: %w", path, err)
		}
		_, member, _ := strings.Cut(header.Name, "/")
		if member != "hsm-kms" && member != "build.txt" {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return release{}, fmt.Errorf("reading %s: %w", path, err)
		}
		if member == "hsm-kms" {
			rel.program, rel.time = content, header.ModTime.UTC()
		} else if match := regexp.MustCompile(`(?m)^commit ([0-9a-f]{40})$`).FindSubmatch(content); match != nil {
			rel.commit = string(match[1])
		}
	}
	if rel.program == nil || rel.commit == "" {
		return release{}, fmt.Errorf("%s holds no program with its build.txt", path)
	}
	return rel, nil
}
