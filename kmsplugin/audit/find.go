package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// maxFoundLine bounds a line of a trail in bytes; ours have less than 4 kB.
const maxFoundLine = 64 << 10

// FindKey looks in the trail at path, and in the files that it was rotated into and that are still beside it, for a
// request about keyID, or about its outage hold. It returns the first one as "OPERATION at TIME in FILE"; empty: there is
// none. An empty path, or no
// file, is no trail. The chain of hashes is not checked. Errors: what cannot be read.
func FindKey(path, keyID string) (string, error) {
	if path == "" {
		return "", nil
	}
	newest, err := OpenToRead(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the audit trail: %w", err)
	}
	if err == nil { // read last: if it is rotated meanwhile, it is still this one
		defer func() { _ = newest.Close() }()
	}
	older, err := rotated(path)
	if err != nil {
		return "", fmt.Errorf("looking for the audit trail: %w", err)
	}
	for _, name := range older {
		file, err := OpenToRead(name)
		if err != nil {
			return "", fmt.Errorf("reading the audit trail: %w", err)
		}
		found, err := findIn(file, keyID)
		if err := errors.Join(err, file.Close()); err != nil {
			return "", fmt.Errorf("reading the audit trail %s: %w", name, err)
		}
		if found != "" {
			return found + " in " + name, nil
		}
	}
	if newest == nil {
		return "", nil
	}
	found, err := findIn(newest, keyID)
	if err != nil {
		return "", fmt.Errorf("reading the audit trail %s: %w", path, err)
	}
	if found != "" {
		found += " in " + path
	}
	return found, nil
}

// rotated are the files that the trail at path was rotated into: path.N.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		number, ours := strings.CutPrefix(entry.Name(), filepath.Base(path)+".")
		if _, err := strconv.ParseUint(number, 10, 64); ours && err == nil {
			files = append(files, filepath.Join(filepath.Dir(path), entry.Name()))
		}
	}
	return files, nil
}

// OpenToRead opens a file of a trail. What is no regular file is an error: a FIFO would read as a trail without records, or have
// its reader wait.
func OpenToRead(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func findIn(file *os.File, keyID string) (string, error) {
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, maxFoundLine)
	for scanner.Scan() {
		if !bytes.Contains(scanner.Bytes(), []byte(keyID)) {
			continue
		}
		var line struct{ Time, Operation, KeyID string }
		if json.Unmarshal(scanner.Bytes(), &line) == nil && envelope.KeyOf(line.KeyID) == keyID {
			return line.Operation + " at " + line.Time, nil
		}
	}
	return "", scanner.Err()
}
