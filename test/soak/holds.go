package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// resources are what the program holds.
type resources struct {
	AnonMiB        float64 // RssAnon: resident memory that is nobody's file
	Threads, Files int
	Recoveries     int // connections made to the token after the first
}

// holds looks at the program from outside: proc_pid_status(5), its descriptors, and a scrape.
func (w *rig) holds(ctx context.Context) (r resources, err error) {
	// First, since the answer's connection stays open for the next one and counts as a descriptor both times.
	if r.Recoveries, err = w.recoveries(ctx); err != nil {
		return r, err
	}
	dir := filepath.Join("/proc", strconv.Itoa(w.plugin.Process().PID()))
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return r, fmt.Errorf("looking at the program (only Linux tells): %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		switch name {
		case "RssAnon":
			r.AnonMiB = float64(value) / 1024
		case "Threads":
			r.Threads = value
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return r, fmt.Errorf("counting descriptors: %w", err)
	}
	r.Files = len(files)
	return r, nil
}

// recoveries reads the sum of hsm_kms_token_recoveries_total.
func (w *rig) recoveries(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.http+"/metrics", nil)
	if err != nil {
		return 0, fmt.Errorf("reading the metrics: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("reading the metrics: %w", err)
	}
	defer answer.Body.Close()
	sum, found := 0.0, false
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 2 && strings.HasPrefix(fields[0], "hsm_kms_token_recoveries_total") {
			value, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return 0, fmt.Errorf("reading the metrics: %w", err)
			}
			sum, found = sum+value, true
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("reading the metrics: %w", err)
	}
	if !found {
		return 0, fmt.Errorf("reading the metrics: no hsm_kms_token_recoveries_total (%s)", answer.Status)
	}
	return int(sum), nil
}
