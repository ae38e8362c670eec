package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/manifests"
)

// manifestFlags are the flags of all manifests; each of them adds those that it uses.
type manifestFlags struct {
	manifests.Values
	file string // of a manifest with several; "": all
}

func (c *command) manifests() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "manifests",
		Short: "Print what is to be installed around the plugin, filled in from the configuration",
		Long: `Prints files to install, filled in from the configuration. A manifest of several files has each of them after a line
"# file: PATH"; --file prints one by itself.`,
		Example: `  hsm-kms manifests encryption-config > /etc/kubernetes/enc/encryption.yaml
  hsm-kms manifests static-pod --image registry.example.com/hsm-kms:1.0.0
  hsm-kms manifests systemd --file hsm-kms.service`,
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
			return c.printFiles(files, flags.file)
		},
	}
	c.withConfig(cmd)
	set := cmd.Flags()
	switch name {
	case "encryption-config", "kubeadm", "kind":
		set.StringVar(&flags.EncryptionConfig, "path", "/etc/kubernetes/enc/encryption.yaml", "where kube-apiserver finds its EncryptionConfiguration")
	case "static-pod":
		set.StringVar(&flags.Image, "image", "hsm-kms:"+version, "image of the program")
	case "systemd", "rotate-timer":
		set.StringVar(&flags.Program, "program", "/usr/local/bin/hsm-kms", "where hsm-kms is installed")
	}
	switch name {
	case "encryption-config":
		set.StringSliceVar(&flags.Resources, "resources", []string{"secrets"}, "what is to be encrypted, as configmaps or widgets.example.com")
		set.BoolVar(&flags.Plaintext, "plaintext", false, "the cluster holds plain text: two steps")
		set.StringVar(&flags.From, "from", "", "the provider that encrypts today (aescbc, aesgcm, secretbox, or the name of a KMS v2 plugin): two steps")
		set.StringVar(&flags.FromEndpoint, "from-endpoint", "", "endpoint of that KMS plugin, as unix:///run/other.sock")
		set.IntVar(&flags.Step, "step", 1, "of two: 1, every API server reads; 2, they write")
		cmd.Example = `  hsm-kms manifests encryption-config                             # a new cluster
  hsm-kms manifests encryption-config --plaintext                 # a cluster that holds plain text: step 1 ...
  hsm-kms manifests encryption-config --plaintext --step 2        # ... and, when that is on every node, step 2
  hsm-kms manifests encryption-config --from aescbc               # from aescbc, likewise
  hsm-kms manifests encryption-config --from vault --from-endpoint unix:///run/vault.sock`
	case "kind":
		flags.Program = "/usr/local/bin/hsm-kms"
	}
	if slices.Contains([]string{"systemd", "rotate-timer", "kubeadm", "kind"}, name) {
		set.StringVar(&flags.file, "file", "", "print only the file of this name")
	}
	return cmd
}

// needsConfig tells whether a manifest has anything of the configuration in it.
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
	v.StateDir, v.AuditPath, v.HTTPAddress = cfg.StateDir, cfg.Audit.Path, cfg.HTTP.Address
	for _, t := range cfg.Tokens {
		v.Tokens = append(v.Tokens, manifests.Token{Name: t.Name, Label: t.Label, Module: t.Module, PINFile: t.PINFile})
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
		return hint.Wrap(errors.New("there is no file "+only+" in this manifest"), "one of "+strings.Join(names, ", "))
	}
	return nil
}
