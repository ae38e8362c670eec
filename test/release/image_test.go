//go:build e2e

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// makeImages makes the images of the release in dir. A mirror of Debian that cannot be reached, or that no longer has what is
// pinned, is no fault of this commit.
func makeImages(t *testing.T, dir string, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./test/tools/image")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil && bytes.Contains(out, []byte("fetching debian")) {
		t.Logf("NOT CHECKED: the image: %s", out)
	} else if err != nil {
		t.Fatalf("making the images: %v: %s", err, out)
	}
}

type descriptor struct {
	MediaType, Digest string
	Size              int
	Annotations       map[string]string
}

// content returns what a descriptor names, and checks that it is that.
func (d descriptor) content(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	content := files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
	if sum := sha256.Sum256(content); d.Size != len(content) || d.Digest != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Fatalf("%s %s has %d bytes, want %d", d.MediaType, d.Digest, len(content), d.Size)
	}
	return content
}

// checkImage checks an image as a registry does, and, where it is of this machine, runs what is in it: serve, with a module that is
// mounted.
func checkImage(t *testing.T, archive []byte, ours bool, commit string) {
	t.Helper()
	files := map[string][]byte{}
	each(t, bytes.NewReader(archive), func(header *tar.Header, content []byte) { files[header.Name] = content })
	if layout := string(files["oci-layout"]); layout != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", layout)
	}
	var index struct{ Manifests []descriptor }
	decode(t, files["index.json"], &index)
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode(t, index.Manifests[0].content(t, files), &manifest)
	if name := index.Manifests[0].Annotations["org.opencontainers.image.ref.name"]; !strings.HasPrefix(name, "localhost/hsm-kms:") {
		t.Errorf("the image's name is %q", name)
	}
	var config struct {
		OS, Architecture string
		Config           struct {
			User       string
			Entrypoint []string
			Labels     map[string]string
		}
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	decode(t, manifest.Config.content(t, files), &config)
	if c := config.Config; config.OS != "linux" || c.User != "0:0" || c.Entrypoint[0] != "/usr/local/bin/hsm-kms" || c.Labels["org.opencontainers.image.revision"] != commit {
		t.Errorf("%+v", config)
	}
	dir := filepath.Join(t.TempDir(), "root")
	for i, layer := range manifest.Layers {
		unzipped, err := gzip.NewReader(bytes.NewReader(layer.content(t, files)))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(unzipped)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(plain); config.RootFS.DiffIDs[i] != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("layer %d is not %s", i, config.RootFS.DiffIDs[i])
		}
		each(t, bytes.NewReader(plain), func(header *tar.Header, content []byte) { install(t, dir, header, content) })
	}
	if ours {
		runImage(t, dir)
	}
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
}

// each calls do for each member of a tar file.
func each(t *testing.T, in io.Reader, do func(*tar.Header, []byte)) {
	t.Helper()
	for reader := tar.NewReader(in); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		do(header, content)
	}
}

// install does what a container runtime does with a member of a layer. Nothing in an image may belong to another than root, be
// writable for others, or take their place.
func install(t *testing.T, root string, header *tar.Header, content []byte) {
	t.Helper()
	mode := header.FileInfo().Mode()
	if header.Uid != 0 || header.Gid != 0 || mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 || mode.Perm()&0o022 != 0 && mode&(fs.ModeSticky|fs.ModeSymlink) == 0 {
		t.Errorf("%s: owner %d:%d, mode %s", header.Name, header.Uid, header.Gid, mode)
	}
	path := filepath.Join(root, header.Name)
	var err error
	switch header.Typeflag {
	case tar.TypeDir:
		err = os.MkdirAll(path, mode.Perm())
	case tar.TypeSymlink:
		err = os.Symlink(header.Linkname, path)
	case tar.TypeReg:
		err = os.WriteFile(path, content, mode.Perm())
	default:
		t.Errorf("%s is of the type %c", header.Name, header.Typeflag)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// runImage makes a key and serves from the image's root, with SoftHSM's folders mounted into it as a pod's are.
func runImage(t *testing.T, root string) {
	t.Helper()
	if exec.CommandContext(t.Context(), "unshare", "--mount", "true").Run() != nil {
		t.Log("NOT CHECKED: the image is not run: that takes root, and namespaces")
		return
	}
	dir, err := os.MkdirTemp("", "hsm-kms-image-") // t.TempDir is too long for a socket's path on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	token, err := softhsm.New(t.Context(), filepath.Join(dir, "hsm"), "image", "")
	if err != nil {
		t.Fatal(err)
	}
	module, err := filepath.EvalSymlinks(token.Module)
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("#!/bin/sh\nexec unshare --mount --propagation private sh -ec '\n")
	for _, folder := range []string{"/proc", "/dev", dir, filepath.Dir(token.Module), filepath.Dir(module)} {
		fmt.Fprintf(&script, "mkdir -p %[1]s%[2]s && mount --rbind %[2]s %[1]s%[2]s\n", root, folder)
	}
	fmt.Fprintf(&script, "exec chroot %s /usr/local/bin/hsm-kms \"$@\"' sh \"$@\"\n", root)
	bin := filepath.Join(dir, "hsm-kms")
	if err := os.WriteFile(bin, []byte(script.String()), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	p, err := plugin.New(plugin.Options{Bin: bin, Dir: filepath.Join(dir, "plugin"), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Run(ctx, "status"); err != nil {
		t.Errorf("status: %v: %s", err, out)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}
