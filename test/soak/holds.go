package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// resources are what the program holds.
type resources struct {
	proc.Held
	Recoveries int // connections made to the token after the first
}

// holds looks at the program from outside, and scrapes it.
func (w *rig) holds(ctx context.Context) (r resources, err error) {
	// First, since the answer's connection stays open for the next one and counts as a descriptor both times.
	if r.Recoveries, err = w.recoveries(ctx); err != nil {
		return r, err
	}
	r.Held, err = proc.HeldBy(w.plugin.Process().PID())
	return r, err
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
