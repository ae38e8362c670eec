//go:build e2e

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

const root = "../.."

// TestReproducible makes the release of the present commit twice: from clones in folders of different names, the second time
// with a cache that is empty, another umask, time zone, locale and home, and an environment full of what would change a build.
func TestReproducible(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("NOT CHECKED: releases are made on Linux")
	}
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		t.Skipf("NOT CHECKED: this is no checkout of git: %v", err)
	}
	// Both are cloned from one clone: somebody may commit to the checkout while this runs.
	base := filepath.Join(t.TempDir(), "base")
	run(t, root, nil, "git", "clone", "--quiet", "--bare", ".", base)
	commit := strings.TrimSpace(run(t, base, nil, "git", "rev-parse", "HEAD"))
	signed := filepath.Join(t.TempDir(), "a")
	one := makeRelease(t, base, signed)
	t.Run("verify", func(t *testing.T) { checkVerify(t, filepath.Join(signed, "dist")) })
	for name := range one {
		t.Log(name)
	}
	t.Run("contents", func(t *testing.T) { checkContents(t, one, commit) })
	t.Run("package", func(t *testing.T) { checkPackage(t, one) })

	modules := filepath.Join(t.TempDir(), "modules")
	if err := os.Symlink(goEnv(t, "GOMODCACHE"), modules); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(t.TempDir(), "cache")
	kept, err := kubebin.CacheRoot() // the packages of the image are pinned by checksum, and fetched once
	if err != nil {
		t.Fatal(err)
	}
	two := makeRelease(t, base, filepath.Join(t.TempDir(), "another", "and longer"),
		"GOCACHE="+cache, "XDG_CACHE_HOME="+filepath.Dir(kept), "GOMODCACHE="+modules, "HOME="+t.TempDir(), "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "LANG=de_DE.UTF-8",
		"GOFLAGS=-ldflags=-compressdwarf=false", "CGO_CFLAGS=-O0 -g", "GOAMD64=v2", "GZIP=-1", "SOURCE_DATE_EPOCH=1", "TAR_OPTIONS=--mode=0777")
	if !slices.Equal(slices.Sorted(maps.Keys(one)), slices.Sorted(maps.Keys(two))) {
		t.Fatalf("%v, and then %v", slices.Sorted(maps.Keys(one)), slices.Sorted(maps.Keys(two)))
	}
	for name, content := range one {
		if !bytes.Equal(content, two[name]) {
			t.Errorf("%s differs: %s", name, difference(t, name, content, two[name]))
		}
	}
}

// makeRelease clones base to dir, runs make release there and returns what is in dist.
func makeRelease(t *testing.T, base, dir string, env ...string) map[string][]byte {
	t.Helper()
	run(t, base, nil, "git", "clone", "--quiet", base, dir)
	// An untracked file is what people have lying about. It must make no difference.
	if err := os.WriteFile(filepath.Join(dir, "cmd/hsm-kms/untracked.go"), []byte("package main\n\nfunc init() { panic(`untracked`) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, env, "sh", "-c", "umask 077 && make release")
	makeImages(t, dir, env...)
	files, err := os.ReadDir(filepath.Join(dir, "dist"))
	if err != nil {
		t.Fatal(err)
	}
	made := map[string][]byte{}
	for _, f := range files {
		if made[f.Name()], err = os.ReadFile(filepath.Join(dir, "dist", f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// checkContents looks into the archives: checksums, what must be in there, fixed headers; and runs the program for this machine.
func checkContents(t *testing.T, made map[string][]byte, commit string) {
	sums := string(made["SHA256SUMS"])
	ours := false
	for name, content := range made {
		if name == "SHA256SUMS" {
			continue
		}
		sum := sha256.Sum256(content)
		if !strings.Contains(sums, hex.EncodeToString(sum[:])+"  "+name+"\n") {
			t.Errorf("SHA256SUMS has not the checksum of %s:\n%s", name, sums)
		}
		here := strings.Contains(name, "-linux-"+runtime.GOARCH+".") || strings.Contains(name, "-linux-"+runtime.GOARCH+"-fips.")
		switch path.Ext(name) {
		case ".tar":
			checkImage(t, content, here, commit)
			continue
		case ".json":
			checkStatement(t, made, name, commit)
			continue
		case ".deb", ".rpm", ".apk":
			continue // see checkPackage
		}
		top := strings.TrimSuffix(name, ".tar.gz")
		files := unpack(t, content)
		for _, must := range []string{
			"hsm-kms", "build.txt", "LICENSE", "README.md", "SECURITY.md", "FORMAT.md", "docs/install.md", "completion/hsm-kms.bash", "man/hsm-kms.1", "man/hsm-kms-keys-retire.1",
			"completion/_hsm-kms", "completion/hsm-kms.fish", "licenses/go/LICENSE", "licenses/github.com/miekg/pkcs11/LICENSE",
		} {
			if len(files[path.Join(top, must)]) == 0 {
				t.Errorf("%s: there is no %s", name, must)
			}
		}
		if build := string(files[path.Join(top, "build.txt")]); !strings.Contains(build, "commit "+commit+"\n") || !strings.Contains(build, "\ngo go1.") {
			t.Errorf("%s: build.txt: %s", name, build)
		}
		if here {
			ours = true
			checkProgram(t, files, top, commit)
		}
	}
	if !ours {
		t.Errorf("there is no archive for this machine: %v", slices.Sorted(maps.Keys(made)))
	}
}

// checkProgram runs the program and lets bash use its completion.
func checkProgram(t *testing.T, files map[string][]byte, top, commit string) {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"hsm-kms": 0o700, "completion/hsm-kms.bash": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, path.Base(name)), files[path.Join(top, name)], mode); err != nil {
			t.Fatal(err)
		}
	}
	var about struct{ Version, Commit, FIPSModule, FIPSMode string }
	if err := json.Unmarshal([]byte(run(t, dir, nil, "./hsm-kms", "version", "-o", "json")), &about); err != nil {
		t.Fatal(err)
	}
	if about.Commit != commit || about.Version == "" || !strings.Contains(top, "-"+about.Version+"-") {
		t.Errorf("%s says %+v", top, about)
	}
	if strings.HasSuffix(top, "-fips") != (about.FIPSModule == "v1.0.0" && about.FIPSMode == "on") {
		t.Errorf("%s says %+v", top, about)
	}
	if out, err := exec.CommandContext(t.Context(), "bash", "-n", filepath.Join(dir, "hsm-kms.bash")).CombinedOutput(); err != nil {
		t.Errorf("the completion script for bash: %v: %s", err, out)
	}
	if said := run(t, dir, nil, "./hsm-kms", "__complete", "keys", "r"); !strings.Contains(said, "rotate") || !strings.Contains(said, "retire") {
		t.Errorf("keys r is completed to %s", said)
	}
}

// checkVerify signs the checksums with a new key, and verifies them by the commands of docs/install.md.
func checkVerify(t *testing.T, dist string) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skipf("NOT CHECKED: nothing was signed: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, commands, _ := strings.Cut(string(text), "<!-- tested: verify -->\n```sh\n")
	commands, _, found := strings.Cut(commands, "```")
	if !found {
		t.Fatal("docs/install.md has no commands that verify a release")
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	run(t, dist, nil, "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
	run(t, dist, nil, "openssl", "ec", "-in", key, "-pubout", "-out", "hsm-kms.pub")
	run(t, dist, []string{"RELEASE_KEY=" + key}, "../test/tools/sign.sh")
	if said := run(t, dist, nil, "bash", "-euo", "pipefail", "-c", commands); !strings.Contains(said, "Verified OK") || !strings.Contains(said, ".deb: OK") {
		t.Errorf("verified: %s", said)
	}
	sums := filepath.Join(dist, "SHA256SUMS")
	if err := os.WriteFile(sums, []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", "cd "+dist+"\n"+commands).CombinedOutput(); err == nil {
		t.Errorf("checksums that were changed were verified: %s", out)
	}
}

// checkStatement checks an SBOM, which every archive and package has, or the provenance, which names all of them.
func checkStatement(t *testing.T, made map[string][]byte, name, commit string) {
	t.Helper()
	if of, isSBOM := strings.CutSuffix(name, ".cdx.json"); isSBOM {
		var bom struct {
			BOMFormat  string
			Components []struct{ PURL string }
		}
		decode(t, made[name], &bom)
		if made[of] == nil || bom.BOMFormat != "CycloneDX" || len(bom.Components) < 40 {
			t.Errorf("%s: %s with %d components", name, bom.BOMFormat, len(bom.Components))
		}
		return
	}
	var statement struct {
		Subject []struct {
			Name   string
			Digest map[string]string
		}
	}
	decode(t, made[name], &statement)
	named := map[string]bool{}
	for _, s := range statement.Subject {
		named[s.Name] = true
		if sum := sha256.Sum256(made[s.Name]); s.Digest["sha256"] != hex.EncodeToString(sum[:]) {
			t.Errorf("%s has not the digest of %s", name, s.Name)
		}
	}
	for file := range made {
		// The image is made of what is named.
		if released := strings.HasPrefix(file, "hsm-kms") && file != name && !strings.Contains(file, ".oci.tar"); released && !named[file] {
			t.Errorf("%s does not name %s", name, file)
		}
	}
	if !strings.Contains(string(made[name]), commit) {
		t.Errorf("%s does not name the commit", name)
	}
}

// unpack returns the files of an archive. Their order, owners, times and modes must be those that do not depend on who packs.
func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	if unzipped.Name != "" || !unzipped.ModTime.IsZero() {
		t.Errorf("gzip keeps the name %q and the time %s", unzipped.Name, unzipped.ModTime)
	}
	files := map[string][]byte{}
	reader := tar.NewReader(unzipped)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if mode := header.FileInfo().Mode().Perm(); header.Uid != 0 || header.Gid != 0 || header.Uname != "" || (mode != 0o755 && mode != 0o644) {
			t.Errorf("%s: owner %d:%d %q, mode %s", header.Name, header.Uid, header.Gid, header.Uname, mode)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}

// difference names the files of two archives that are not the same.
func difference(t *testing.T, name string, one, two []byte) []string {
	t.Helper()
	if strings.HasSuffix(name, ".oci.tar") {
		return []string{"the image, by its program or by how it is packed"}
	}
	if !strings.HasSuffix(name, ".gz") {
		return []string{string(one), string(two)}
	}
	a, b := unpack(t, one), unpack(t, two)
	var differ []string
	for file := range a {
		if !bytes.Equal(a[file], b[file]) {
			differ = append(differ, file)
		}
	}
	return append(differ, "and headers, if nothing is named")
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, root, nil, "go", "env", name))
}

// run runs a command in dir and returns its standard output.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String()
}
