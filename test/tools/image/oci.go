package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// image is what the OCI image specification 1.1 asks for beside the layers.
type image struct {
	name    string // with its tag
	arch    string // as GOARCH
	version string
	commit  string
	created time.Time
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func describe(mediaType string, b blob) descriptor {
	return descriptor{MediaType: "application/vnd.oci.image." + mediaType, Digest: b.digest, Size: len(b.bytes)}
}

// archive returns the image layout (image-layout.md of the specification) as a tar file.
func (im image) archive(layers []*layer) ([]byte, error) {
	var blobs []blob
	var described []descriptor
	var plain []string
	for _, l := range layers {
		packed, digest, err := l.pack()
		if err != nil {
			return nil, err
		}
		blobs, described, plain = append(blobs, packed), append(described, describe("layer.v1.tar+gzip", packed)), append(plain, digest)
	}
	config, err := marshal(im.config(plain))
	if err != nil {
		return nil, err
	}
	manifest, err := marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe("config.v1+json", config), "layers": described,
	})
	if err != nil {
		return nil, err
	}
	entry := describe("manifest.v1+json", manifest)
	entry.Platform = map[string]string{"os": "linux", "architecture": im.arch}
	// The first is for podman and skopeo, the second for containerd.
	entry.Annotations = map[string]string{"org.opencontainers.image.ref.name": im.name, "io.containerd.image.name": im.name}
	index, err := marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []descriptor{entry},
	})
	if err != nil {
		return nil, err
	}
	return im.pack(append(blobs, config, manifest), index)
}

func (im image) config(diffIDs []string) map[string]any {
	return map[string]any{
		"created": im.created.Format(time.RFC3339), "architecture": im.arch, "os": "linux",
		"config": map[string]any{
			// root, without capabilities by the pod's securityContext: PIN file and socket folder are root's.
			"User": "0:0", "Entrypoint": []string{"/usr/local/bin/hsm-kms"}, "Cmd": []string{"serve"},
			"Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, "WorkingDir": "/",
			"Labels": map[string]string{
				"org.opencontainers.image.title": "hsm-kms", "org.opencontainers.image.version": im.version,
				"org.opencontainers.image.revision": im.commit, "org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.source": "https://github.com/hsm-kms/hsm-kms",
			},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}
}

func (im image) pack(blobs []blob, index blob) ([]byte, error) {
	files := []struct {
		name    string
		content []byte
	}{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index.bytes}}
	for _, b := range blobs {
		files = append(files, struct {
			name    string
			content []byte
		}{"blobs/" + strings.Replace(b.digest, ":", "/", 1), b.bytes})
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, f := range files {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content)), ModTime: im.created, Format: tar.FormatPAX}); err != nil {
			return nil, fmt.Errorf("writing the image: %w", err)
		}
		if _, err := archive.Write(f.content); err != nil {
			return nil, fmt.Errorf("writing the image: %w", err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("writing the image: %w", err)
	}
	return out.Bytes(), nil
}

// marshal writes JSON; maps have their keys in order.
func marshal(value any) (blob, error) {
	content, err := json.Marshal(value)
	if err != nil {
		return blob{}, fmt.Errorf("encoding the image: %w", err)
	}
	return blobOf(content), nil
}
