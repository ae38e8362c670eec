// Command release writes what is said of a release beside its files: for each program an SBOM (package bom),
// and for all files one statement of provenance in the form of in-toto with the predicate SLSA provenance v1. It takes nothing
// from the clock or the machine, so that equal files give equal statements.
//
//	release sbom -program FILE -name NAME -version VERSION                     to standard output
//	release provenance -commit COMMIT -version VERSION -time UNIX FILE...    to standard output
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/tools/bom"
)

const source = "https://github.com/hsm-kms/hsm-kms"

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("sbom or provenance")
	}
	switch args[0] {
	case "sbom":
		return sbom(args[1:], out)
	case "provenance":
		return provenance(args[1:], out)
	}
	return fmt.Errorf("%q is neither sbom nor provenance", args[0])
}

// digest is the SHA-256 of a file.
func digest(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // of the release
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // only read
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// sbom describes a program and what holds it.
func sbom(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	program := flags.String("program", "", "the program")
	name := flags.String("name", "", "name of the file that holds it")
	version := flags.String("version", "", "version of the release")
	if err := flags.Parse(args); err != nil {
		return err
	}
	content, err := os.ReadFile(*program)
	if err != nil {
		return err
	}
	return bom.Write(out, content, *name, *version)
}

// provenance says of the files what they were made of. It says nothing of who made them, which a signature does.
func provenance(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("provenance", flag.ContinueOnError)
	commit := flags.String("commit", "", "commit of the source")
	version := flags.String("version", "", "version of the release")
	unix := flags.Int64("time", 0, "time of the commit")
	toolchain := flags.String("toolchain", "", "lines of what built it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	type digests map[string]string
	type subject struct {
		Name   string  `json:"name"`
		Digest digests `json:"digest"`
	}
	subjects := []subject{}
	for _, path := range flags.Args() {
		sum, err := digest(path)
		if err != nil {
			return err
		}
		subjects = append(subjects, subject{filepath.Base(path), digests{"sha256": sum}})
	}
	if len(subjects) == 0 {
		return errors.New("no file was named")
	}
	slices.SortFunc(subjects, func(a, b subject) int { return strings.Compare(a.Name, b.Name) })
	type object = map[string]any
	e := json.NewEncoder(out)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	return e.Encode(object{
		"_type": "https://in-toto.io/Statement/v1", "subject": subjects, "predicateType": "https://slsa.dev/provenance/v1",
		"predicate": object{
			"buildDefinition": object{
				"buildType":            source + "/blob/main/CONTRIBUTING.md#releases",
				"externalParameters":   object{"source": "git+" + source, "version": *version, "command": "make release"},
				"internalParameters":   object{"toolchain": strings.Split(strings.TrimSpace(*toolchain), "\n"), "sourceDate": time.Unix(*unix, 0).UTC().Format(time.RFC3339)},
				"resolvedDependencies": []object{{"uri": "git+" + source, "digest": digests{"gitCommit": *commit}}},
			},
			"runDetails": object{"builder": object{"id": source + "/blob/main/test/tools/release.sh"}},
		},
	})
}
