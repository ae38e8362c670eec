package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/manifests"
)

// manifestFlags are the flags of all manifests; each of them adds those that it uses.
type manifestFlags struct {
	manifests.Values
	file    string // of a manifest with several; "": all
	output  string // file to be written; "": standard output
	replace bool   // also an EncryptionConfiguration that reads more
}

func (c *command) manifests() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "manifests",
		Short: "Print what is to be installed around the plugin, filled in from the configuration",
		Long: `Prints files to install, filled in from the configuration. If a manifest has several files, each follows a line
"# file: PATH"; --file prints one of them.

--output FILE writes to a file instead. A reader of FILE sees the old content or the new one, never an empty or half a
file, as with ">". An existing file keeps its owner and mode.`,
		Example: `  hsm-kms manifests encryption-config --output /etc/kubernetes/enc/encryption.yaml
  hsm-kms manifests static-pod --image registry.example.com/hsm-kms:1.0.0
  hsm-kms manifests systemd --file hsm-kms.service --output /etc/systemd/system/hsm-kms.service`,
	})
	for _, name := range manifests.Names() {
		cmd.AddCommand(c.manifest(name))
	}
	return cmd
}

// manifest is the subcommand of one.
func (c *command) manifest(name string) *cobra.Command {
	var flags manifestFlags
	cmd := &cobra.Command{
		Use:     name,
		Short:   "Print " + manifests.Short(name),
		Example: "  hsm-kms manifests " + name,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := c.fillIn(&flags.Values, needsConfig(name)); err != nil {
				return err
			}
			files, err := manifests.Render(name, flags.Values)
			if err != nil {
				return err
			}
			return c.deliver(name, files, &flags)
		},
	}
	c.withConfig(cmd)
	flags.add(cmd, name)
	return cmd
}

// add gives the command of a manifest its flags.
func (flags *manifestFlags) add(cmd *cobra.Command, name string) {
	set := cmd.Flags()
	set.StringVarP(&flags.output, "output", "o", "", "write to this file instead of printing: in one step, keeping the owner and mode of a file that is there")
	switch name {
	case "encryption-config", "kubeadm", "kind", "sidecar":
		set.StringVar(&flags.EncryptionConfig, "path", "/etc/kubernetes/enc/encryption.yaml", "where kube-apiserver finds its EncryptionConfiguration")
	case "podmonitor", "scrape-config":
		set.StringVar(&flags.Cluster, "cluster", "", "value of the label cluster, by which alerts tell clusters apart (default: the name of the key ring)")
	case "systemd", "rotate-timer", "operator":
		set.StringVar(&flags.Program, "program", "/usr/local/bin/hsm-kms", "where hsm-kms is installed")
	}
	switch name {
	case "static-pod", "sidecar", "operator-pod":
		set.StringVar(&flags.Image, "image", "", "image of the program, required: the one that you built and pushed")
	}
	switch name {
	case "operator", "operator-pod":
		set.StringSliceVar(&flags.Resources, "resources", []string{"secrets"}, "what hsm-kms operate rewrites after a rotation: the same as in the EncryptionConfiguration")
		cmd.Example = "  hsm-kms manifests operator --file operate-rbac.yaml --output operate-rbac.yaml"
		if name == "operator-pod" {
			cmd.Example = "  hsm-kms manifests operator-pod --image registry.example.com/hsm-kms:1.0.0 --output /etc/kubernetes/manifests/hsm-kms-operate.yaml"
		}
	case "sidecar":
		set.StringVar(&flags.Container, "container", "kube-apiserver", "name of the container that runs kube-apiserver")
		cmd.Example = "  hsm-kms manifests sidecar --config config.yaml --image registry.example.com/hsm-kms:1.0.0 --output hsm-kms-sidecar.yaml"
	case "encryption-config":
		set.StringSliceVar(&flags.Resources, "resources", []string{"secrets"}, "what is to be encrypted, such as configmaps or widgets.example.com")
		set.StringVar(&flags.Provider, "name", "hsm-kms", "name of this plugin's provider; etcd holds it with every object, so never change it")
		set.BoolVar(&flags.replace, "replace", false, "with --output: also where the file that is there has a provider or a key that the new one has not")
		set.BoolVar(&flags.Plaintext, "plaintext", false, "the cluster holds plain text: two steps")
		set.StringVar(&flags.From, "from", "", "the provider that encrypts today (aescbc, aesgcm, secretbox, or the name of a KMS v2 plugin): two steps")
		set.StringVar(&flags.FromEndpoint, "from-endpoint", "", "endpoint of that KMS plugin, such as unix:///run/other.sock")
		set.IntVar(&flags.Step, "step", 0, "of two, with --plaintext or --from: 1, every API server reads (default); 2, they write")
		cmd.Example = `  hsm-kms manifests encryption-config                             # a new cluster
  hsm-kms manifests encryption-config --plaintext                 # a cluster that holds plain text: step 1 ...
  hsm-kms manifests encryption-config --plaintext --step 2        # ... and, when that is on every node, step 2
  hsm-kms manifests encryption-config --from aescbc               # from aescbc, likewise
  hsm-kms manifests encryption-config --from vault --from-endpoint unix:///run/vault.sock`
	case "scrape-config":
		set.StringArrayVar(&flags.Targets, "target", nil, "`host:port` of a plugin, once for each node (default: http.address, for an agent on this node)")
		cmd.Example = `  hsm-kms manifests scrape-config --target cp-1:9808 --target cp-2:9808 --output /etc/prometheus/scrape/hsm-kms.scrape.yaml`
	case "kind":
		flags.Program, flags.Provider, flags.Resources = "/usr/local/bin/hsm-kms", "hsm-kms", []string{"secrets"}
		cmd.Example = `  for file in kind.yaml Dockerfile.kind encryption.yaml hsm-kms.service hsm-kms.socket; do
    hsm-kms manifests kind --config config.yaml --file $file --output $file
  done`
	}
	if names := manifests.FileNames(name); len(names) > 1 {
		set.StringVar(&flags.file, "file", "", "only the file of this `name`: "+strings.Join(names, ", "))
	}
}

// needsConfig reports whether a manifest has anything of the configuration in it.
func needsConfig(name string) bool {
	return !slices.Contains([]string{"dockerfile", "alerts", "dashboard"}, name)
}

// fillIn sets what the configuration says.
func (c *command) fillIn(v *manifests.Values, needed bool) error {
	v.Version = version
	if !needed {
		return nil
	}
	if err := checkResources(v.Resources); err != nil {
		return err
	}
	if wide, covered, overlap := stored.Overlap(v.Resources); overlap {
		return hint.Wrap(fmt.Errorf("--resources: %s covers %s too, and kube-apiserver refuses that in one list", wide, covered), "name "+covered+" or "+wide)
	}
	cfg, err := config.Load(c.configPath)
	if err != nil {
		return err
	}
	if v.ConfigPath, err = filepath.Abs(c.configPath); err != nil {
		return fmt.Errorf("placing the configuration: %w", err)
	}
	v.SocketPath, v.SocketMode, v.SocketGroup = cfg.Socket.Path, cfg.Socket.Mode.String(), cfg.Socket.Group
	v.StateDir, v.AuditPath, v.HTTPAddress, v.AllowPodVolumes = cfg.StateDir, cfg.Audit.Path, cfg.HTTP.Address, cfg.AllowPodVolumes
	if v.Cluster == "" {
		v.Cluster = cfg.KeyRing
	}
	if v.Hostname, err = os.Hostname(); err != nil {
		return fmt.Errorf("asking for the name of this machine: %w", err)
	}
	for _, t := range cfg.AllTokens() {
		v.Tokens = append(v.Tokens, manifests.Token{
			Name: t.Name, Label: t.Label, Module: t.Module, PINFile: t.PINFile, AllowGroupPIN: t.AllowGroupPIN, Links: linksOf(t.Module),
			MaxSessions: t.MaxSessions, ConnectTimeout: t.ConnectTimeout.Std(),
		})
	}
	return nil
}

// linksOf returns what a module leads to where it is a link on this machine: each link on the way, then the file with no
// link left in its path. A machine that does not have the module knows of none.
func linksOf(module string) []string {
	var paths []string
	for path := module; len(paths) < 40; paths = append(paths, path) { // as many as the kernel follows
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	if real, err := filepath.EvalSymlinks(module); err == nil && real != module && !slices.Contains(paths, real) {
		paths = append(paths, real)
	}
	return paths
}

// deliver prints the files, or writes the one that is asked for.
func (c *command) deliver(name string, files []manifests.File, flags *manifestFlags) error {
	if flags.output == "" {
		return c.printFiles(files, flags.file)
	}
	if slices.Contains(outputs, flags.output) {
		return hint.Wrap(fmt.Errorf("--output of manifests is a file, and %s is the name of a form elsewhere", flags.output),
			"leave --output out to print; for a file of that name: --output ./"+flags.output)
	}
	var names []string
	for _, f := range files {
		if base := filepath.Base(f.Path); len(files) == 1 || base == flags.file {
			return c.writeManifest(name, f.Content, flags)
		}
		names = append(names, filepath.Base(f.Path))
	}
	if flags.file != "" {
		return noSuchFile(flags.file, names)
	}
	return hint.Wrap(errors.New("--output takes one file, and this manifest has several"), "add --file with one of "+strings.Join(names, ", "))
}

func (c *command) writeManifest(name string, content []byte, flags *manifestFlags) error {
	perm := fs.FileMode(0o644)
	if bytes.HasPrefix(content, []byte("#!")) {
		perm = 0o755
	}
	if name == "encryption-config" {
		perm = 0o600 // the next one may hold keys
		if err := keepsReading(flags.output, content); err != nil && !flags.replace {
			return err
		}
	}
	err := atomicfile.Replace(flags.output, content, perm)
	if errors.Is(err, fs.ErrNotExist) {
		return hint.Wrap(err, "make the folder first: install -d "+filepath.Dir(flags.output))
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.errOut, "wrote %s\n", flags.output)
	return err
}

// keepsReading refuses an EncryptionConfiguration that reads less than the one at path: a key that stands only there would
// be gone, and with it everything that is encrypted under it.
func keepsReading(path string, content []byte) error {
	const kept = "nothing was written: print the new list, copy into it what the file has more, and check it with hsm-kms doctor --encryption-config; " +
		"--replace overwrites what etcd no longer needs"
	old, err := encconfig.Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return app.Finding(hint.Wrap(fmt.Errorf("%s is there, and what it reads cannot be known: %w", path, err), kept))
	}
	next, err := encconfig.Parse(content)
	if err != nil {
		return fmt.Errorf("reading the new EncryptionConfiguration: %w", err)
	}
	if lost := old.Lost(next); len(lost) > 0 {
		return app.Finding(hint.Wrap(fmt.Errorf("%s has what the new list has not: %s", path, strings.Join(lost, "; ")), kept))
	}
	return nil
}

// printFiles prints all files, or the one whose name is only.
func (c *command) printFiles(files []manifests.File, only string) error {
	var names []string
	for _, f := range files {
		name := filepath.Base(f.Path)
		names = append(names, name)
		if only != "" && name != only {
			continue
		}
		if only == "" && len(files) > 1 {
			if _, err := fmt.Fprintf(c.out, "# file: %s\n", f.Path); err != nil {
				return fmt.Errorf("writing output: %w", err)
			}
		}
		if _, err := c.out.Write(f.Content); err != nil {
			return fmt.Errorf("writing output: %w", err)
		}
		if name == only {
			return nil
		}
	}
	if only != "" {
		return noSuchFile(only, names)
	}
	return nil
}

func noSuchFile(name string, names []string) error {
	return hint.Wrap(errors.New("there is no file "+name+" in this manifest"), "give --file one of "+strings.Join(names, ", "))
}
