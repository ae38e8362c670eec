//go:build e2e

package cluster

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
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// image is what is put into an archive that `ctr images import` reads.
type image struct {
	name       string            // with its tag
	files      map[string]string // path in the image: file of this machine
	entrypoint []string
}

// The image of the documents.
const pluginName, pluginVersion = "registry.example.com/hsm-kms", "1.0.0"

// makePluginImage makes the image of the program under test by the tool of `make image`, of an archive as `make release` makes it.
func (w *environment) makePluginImage(ctx context.Context) error {
	dist := filepath.Join(w.machine.dir, "dist")
	archive := filepath.Join(dist, "hsm-kms-"+pluginVersion+"-linux-"+runtime.GOARCH)
	program, err := os.ReadFile(filepath.Join(w.program, "hsm-kms"))
	if err := errors.Join(err, os.Mkdir(dist, 0o755), os.WriteFile(filepath.Join(dist, "SHA256SUMS"), nil, 0o600)); err != nil { //nolint:gosec // nothing secret
		return err
	}
	var packed bytes.Buffer
	zipped := gzip.NewWriter(&packed)
	out := tar.NewWriter(zipped)
	for name, content := range map[string][]byte{"hsm-kms": program, "build.txt": []byte("commit " + strings.Repeat("0", 40) + "\n")} {
		if err := errors.Join(out.WriteHeader(&tar.Header{Name: "hsm-kms/" + name, Mode: 0o755, Size: int64(len(content)), ModTime: time.Unix(0, 0)}), second(io.Copy(out, bytes.NewReader(content)))); err != nil {
			return err
		}
	}
	if err := errors.Join(out.Close(), zipped.Close(), os.WriteFile(archive+".tar.gz", packed.Bytes(), 0o600)); err != nil {
		return err
	}
	text, err := exec.CommandContext(ctx, "go", "run", "../tools/image", "-name", pluginName, "-dist", dist).CombinedOutput()
	switch {
	case err != nil && bytes.Contains(text, []byte("fetching debian")):
		return fmt.Errorf("%w: %s", errPackages, text)
	case err != nil:
		return fmt.Errorf("making the plugin's image: %w: %s", err, text)
	}
	return os.Rename(archive+".oci.tar", filepath.Join(w.images, "hsm-kms.tar"))
}

// makeImages writes an archive for each image that kubeadm's static pods name.
func (w *environment) makeImages(pause string) error {
	all := []image{
		{name: "registry.k8s.io/pause:3.10.2", files: map[string]string{"pause": pause}, entrypoint: []string{"/pause"}},
		{name: "registry.k8s.io/etcd:3.7.0-0", files: map[string]string{"usr/local/bin/etcd": w.kube.Server.Path("etcd")}},
		{name: "registry.k8s.io/kube-apiserver:" + w.kube.Version, files: map[string]string{"usr/local/bin/kube-apiserver": w.kube.Server.Path("kube-apiserver")}},
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		all = append(all, image{name: "registry.k8s.io/" + name + ":" + w.kube.Version, files: map[string]string{"usr/local/bin/" + name: w.kube.Node.Path(name)}})
	}
	for i, im := range all {
		if err := im.write(filepath.Join(w.images, fmt.Sprintf("%d.tar", i))); err != nil {
			return fmt.Errorf("making the image %s: %w", im.name, err)
		}
	}
	return nil
}

// write writes the image as one layer, in the form of `docker save`.
func (im image) write(path string) error {
	layer := path + ".layer"
	defer os.Remove(layer)
	digest, err := im.layer(layer)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": time.Unix(0, 0).UTC(),
		"config": map[string]any{"Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, "Entrypoint": im.entrypoint},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	name := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{im.name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	for name, content := range map[string][]byte{"manifest.json": manifest, name: config} {
		if err := errors.Join(archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}), second(io.Copy(archive, bytes.NewReader(content)))); err != nil {
			return err
		}
	}
	return errors.Join(addFile(archive, "layer.tar", layer), archive.Close(), out.Close())
}

func second(_ int64, err error) error { return err }

// layer writes the tar of the image's files, and returns its SHA-256.
func (im image) layer(path string) (string, error) {
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	archive := tar.NewWriter(io.MultiWriter(out, hash))
	for name, file := range im.files {
		if err := addFile(archive, name, file); err != nil {
			return "", err
		}
	}
	err = errors.Join(archive.Close(), out.Close()) // the end of the archive is part of the digest
	return hex.EncodeToString(hash.Sum(nil)), err
}

func addFile(archive *tar.Writer, name, path string) error {
	in, err := os.Open(path) //nolint:gosec // programs of ours
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	return errors.Join(archive.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size()}), second(io.Copy(archive, in)))
}
