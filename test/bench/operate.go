package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

const (
	// operateTest is the subtest that counts the requests of three nodes, in a simulation: an hour of it takes seconds, under a
	// clock that Go has in tests alone.
	operateTest    = "TestRequests/3"
	operatePackage = "github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator"
)

// event is a line of go test -json (go doc test2json).
type event struct {
	Action, Test, Key, Value string
}

// operate runs that test, and takes its figures from the attributes that it gives to programs (testing.T.Attr).
func operate(ctx context.Context, t *table) error {
	tell("requests of operate, in a simulation")
	out, err := proc.Command(ctx, "go", "test", "-json", "-count=1", "-run", "^TestRequests$/^3$", operatePackage).Output()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed { // a test that fails has figures too
		return fmt.Errorf("running %s: %w", operateTest, err)
	}
	found := false
	for line := range bytes.Lines(out) {
		var e event
		if json.Unmarshal(line, &e) != nil || e.Action != "attr" || e.Test != operateTest {
			continue
		}
		requests, err := strconv.Atoi(e.Value)
		if err != nil {
			return fmt.Errorf("reading the attribute %s of %s: %w", e.Key, operateTest, err)
		}
		var limit *measure.Limit
		if strings.HasPrefix(e.Key, "Steady,") { // nothing is to be done
			limit, found = measure.AtMost(400), true
		}
		t.Figure("operate, three nodes, requests in an hour: "+strings.NewReplacer("-", " ", ",", ", ").Replace(e.Key), float64(requests), "requests", limit)
	}
	if !found {
		return fmt.Errorf("%s gives no figure: %w\n%s", operateTest, err, out)
	}
	return nil
}
