//go:build e2e

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// image is what is put into an archive that `ctr images import` reads.
type image struct {
	name       string            // with its tag
	root       string            // folder; "": nothing but files
	files      map[string]string // path in the image: file of this machine
	entrypoint []string
	cmd        []string
}

const pluginImage = "registry.example.com/hsm-kms:1.0.0"

// makeImages writes an archive for each image that kubeadm's static pods and ours name.
func (w *world) makeImages(base, pause string) error {
	all := []image{
		{name: "registry.k8s.io/pause:3.10.2", files: map[string]string{"pause": pause}, entrypoint: []string{"/pause"}},
		{name: pluginImage, root: base, files: map[string]string{"usr/local/bin/hsm-kms": filepath.Join(w.program, "hsm-kms")},
			entrypoint: []string{"/usr/local/bin/hsm-kms"}, cmd: []string{"serve"}},
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
		"config": map[string]any{"Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, "Entrypoint": im.entrypoint, "Cmd": im.cmd},
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
	if im.root != "" {
		if err := addFolder(archive, im.root); err != nil {
			return "", err
		}
	}
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

// addFolder adds all of a folder with owners and modes. Devices have no place in an image.
func addFolder(archive *tar.Writer, root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." || info.Mode()&(fs.ModeDevice|fs.ModeSocket|fs.ModeNamedPipe) != 0 {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		header.Name, header.Uname, header.Gname = name, "", ""
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			header.Uid, header.Gid = int(st.Uid), int(st.Gid)
		}
		if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		in, err := os.Open(path) //nolint:gosec // Debian's files
		if err != nil {
			return err
		}
		defer in.Close()
		return second(io.Copy(archive, in))
	})
}
