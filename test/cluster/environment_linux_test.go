//go:build e2e

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// environment is what every node is made of.
type environment struct {
	machine *machine
	kube    kubebin.NodeSet
	root    string            // root file system of a node
	images  string            // folder of image archives
	program string            // folder with hsm-kms
	blocks  map[string]string // of the documents, by name

	used     sync.Map // names of blocks that were run
	mutex    sync.Mutex
	deviated []string
}

// deviates records what this machine forces to be otherwise than documented; it is printed at the end.
func (w *environment) deviates(text string) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if !slices.Contains(w.deviated, text) {
		w.deviated = append(w.deviated, text)
	}
}

// packages are those of a node: what Debian's kubeadm, kubelet and containerd packages pull in, and SoftHSM.
var packages = []string{
	"systemd", "systemd-sysv", "dbus", "softhsm2", "containerd", "runc", "containernetworking-plugins", "iptables", "conntrack",
	"ethtool", "socat", "iproute2", "procps", "util-linux", "kmod", "ca-certificates",
}

// errPackages: packages of Debian cannot be had here.
var errPackages = errors.New("packages of Debian cannot be had here")

// newEnvironment finds or makes everything, telling what takes long.
func newEnvironment(ctx context.Context) (*environment, error) {
	w := &environment{}
	var err error
	if w.kube, err = kubebin.Node(ctx, os.Stderr, false); err != nil {
		return nil, err
	}
	if w.root, err = fileSystem(ctx); err != nil {
		return nil, err
	}
	if w.blocks, err = nodeBlocks(); err != nil {
		return nil, err
	}
	if w.machine, err = newMachine(); err != nil {
		return nil, err
	}
	if err := w.build(ctx); err != nil {
		return nil, errors.Join(err, w.machine.close())
	}
	return w, nil
}

// build makes the program, and the images of this run.
func (w *environment) build(ctx context.Context) error {
	w.program, w.images = filepath.Join(w.machine.dir, "program"), filepath.Join(w.machine.dir, "images")
	bin := os.Getenv("HSM_KMS_BIN")
	if bin == "" {
		return errors.New("HSM_KMS_BIN names no program; use make cluster")
	}
	if err := errors.Join(os.Mkdir(w.program, 0o755), os.Mkdir(w.images, 0o755), copyFile(bin, filepath.Join(w.program, "hsm-kms"))); err != nil { //nolint:gosec // programs
		return err
	}
	pause := filepath.Join(w.machine.dir, "pause")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", pause, "./pause")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building pause: %w: %s", err, out)
	}
	return errors.Join(w.makeImages(pause), w.makePluginImage(ctx))
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from) //nolint:gosec // a program of ours
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755) //nolint:gosec // a program
}

// fileSystem gives a folder of the cache with the packages of a node, which it makes if need be.
func fileSystem(ctx context.Context) (string, error) {
	cache, err := kubebin.CacheRoot()
	if err != nil {
		return "", err
	}
	const suite, variant = "bookworm", "apt"
	sum := sha256.Sum256([]byte(suite + variant + strings.Join(packages, ",")))
	dir := filepath.Join(cache, "cluster", "node-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // Debian's files
		return "", err
	}
	// One folder for all attempts: what a killed one left goes. Two runs at once would disturb each other: see hold in main.
	making := dir + ".making"
	fmt.Fprintln(os.Stderr, "making a root file system of Debian packages: once, about 2 minutes")
	began := time.Now()
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "mmdebstrap", "--mode=root", "--variant="+variant, "--include="+strings.Join(packages, ","), suite, making).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: mmdebstrap: %w: %s", errPackages, err, out[max(0, len(out)-2000):])
	}
	fmt.Fprintf(os.Stderr, "made in %.0f s\n", time.Since(began).Seconds())
	return dir, os.Rename(making, dir)
}

var nodeMark = regexp.MustCompile("(?m)^ *<!-- node: ([a-z0-9-]+) -->\n( *)```sh\n((?s:.*?))^ *```$")

// nodeBlocks reads the blocks that are to be run on a node from the documents.
func nodeBlocks() (map[string]string, error) {
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(documents) == 0 {
		return nil, fmt.Errorf("no documents: %w", err)
	}
	blocks := map[string]string{}
	for _, path := range documents {
		text, err := os.ReadFile(path) //nolint:gosec // our documents
		if err != nil {
			return nil, err
		}
		found := nodeMark.FindAllStringSubmatch(string(text), -1)
		if marks := strings.Count(string(text), "<!-- node:"); marks != len(found) {
			return nil, fmt.Errorf("%s has %d marks and %d blocks", path, marks, len(found))
		}
		for _, match := range found {
			if _, twice := blocks[match[1]]; twice {
				return nil, fmt.Errorf("%s: two blocks are called %s", path, match[1])
			}
			blocks[match[1]] = regexp.MustCompile("(?m)^"+match[2]).ReplaceAllString(match[3], "")
		}
	}
	return blocks, nil
}
