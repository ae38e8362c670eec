package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"

	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// Example is a configuration with every field and its default, with comments.
//
//go:embed example.yaml
var Example string

// MaxFileSize is the largest configuration file, in bytes. It is more than 16 tokens with every field need.
const MaxFileSize = 64 << 10

// Load reads the file at path. The file must be a regular one (links to it are followed, as Kubernetes mounts need)
// that belongs to root or our own user and that nobody else can write: who can, chooses the module that we load.
//
// The error holds every mistake that was found, one a line, each a *Problem, and always has a hint. A file that cannot
// be opened keeps its cause for errors.Is (fs.ErrNotExist, fs.ErrPermission).
func Load(path string) (*Config, error) {
	file, info, err := ownedfile.Open(path)
	if err != nil {
		advice := "run as root, or as the user that owns it"
		if errors.Is(err, fs.ErrNotExist) {
			advice = "give its path with --config, or write one: hsm-kms config example prints a sample"
		}
		return nil, hint.Wrap(fmt.Errorf("reading configuration: %w", err), advice)
	}
	defer file.Close()
	if err := judgeFile(path, info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, MaxFileSize+1))
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("reading configuration: %w", err), "look at the disk that holds "+path)
	}
	return Parse(path, data)
}

// judgeFile reports whether the file may be believed.
func judgeFile(path string, info ownedfile.Info) error {
	p := problems{file: path}
	switch {
	case !info.Regular:
		p.report("", "is not a regular file", "give the path of the YAML file")
	case !info.OwnerTrusted():
		p.report("", fmt.Sprintf("belongs to uid %d, who is neither root nor uid %d of this process", info.UID, os.Geteuid()),
			info.FixOwner(path))
	case info.Perm&0o022 != 0:
		p.report("", fmt.Sprintf("mode %04o lets others write it", info.Perm), "chmod go-w "+path)
	default:
		return nil
	}
	return hint.Wrap(p.err(), p.found[0].Hint)
}

// Parse reads a configuration from data; file is its name in errors, which are as Load's.
func Parse(file string, data []byte) (*Config, error) {
	s := schema{problems: &problems{file: file, lines: map[string]int{}}}
	root := s.parse(data)
	if root == nil {
		return nil, s.err()
	}
	s.lines[""] = root.Line
	s.check(root, "", reflect.TypeFor[Config]())
	if s.broken {
		return nil, s.err()
	}
	cfg := Default()
	cfg.APIVersion, cfg.Kind = "", "" // they say which defaults hold, so they have none
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(cfg); err != nil && len(s.found) == 0 {
		s.reportYAML(err) // the walk missed something; nothing that it cannot name is let through
	}
	cfg.validate(s.problems)
	if err := s.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// parse returns the root of the only document in data, or nil after a report.
func (s *schema) parse(data []byte) *yaml.Node {
	if len(data) > MaxFileSize {
		s.reportAt(0, "", fmt.Sprintf("is larger than %d bytes", MaxFileSize), "keep nothing but the configuration in it")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		s.reportAt(0, "", "is empty", "hsm-kms config example prints a sample")
		return nil
	case err != nil:
		s.reportYAML(err)
		return nil
	}
	switch err := decoder.Decode(&next); {
	case err == nil:
		s.reportAt(next.Line, "", "holds a second document", "keep one document in the file")
		return nil
	case !errors.Is(err, io.EOF):
		s.reportYAML(err)
		return nil
	}
	return doc.Content[0]
}
