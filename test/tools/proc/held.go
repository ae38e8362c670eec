package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Held is what a process holds.
type Held struct {
	AnonMiB        float64 // RssAnon: resident memory that is nobody's file
	Threads, Files int
}

// HeldBy reads a process's status (proc_pid_status(5)) and counts its descriptors: 0 where only root can see them. Without /proc,
// or without the process, the error is fs.ErrNotExist.
func HeldBy(pid int) (h Held, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return h, fmt.Errorf("looking at a process: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		switch name {
		case "RssAnon":
			h.AnonMiB = float64(value) / 1024
		case "Threads":
			h.Threads = value
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return h, fmt.Errorf("counting descriptors: %w", err)
	}
	h.Files = len(files)
	return h, nil
}

// Children finds the processes that a process has started, by the fourth field of proc_pid_stat(5).
func Children(parent int) (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
