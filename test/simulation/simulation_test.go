package simulation

import (
	"flag"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

func runBubble(t *testing.T, f func()) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { f() })
}

// TestMain keeps the everyday run short, and that of make unit shorter; -rapid.checks=4000 looks for two minutes.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	switch {
	case given:
	case testing.Short():
		_ = flag.Set("rapid.checks", "2")
	default:
		_ = flag.Set("rapid.checks", "25")
	}
	os.Exit(m.Run())
}

// TestPromises: whatever happens within the assumptions, what the package comment promises holds.
func TestPromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		p := drawPlan.Draw(rt, "plan")
		story, violated := inBubble(t, p.Setup, p.play)
		if violated != nil {
			rt.Fatalf("%v\n%s", violated, story)
		}
	})
}

// TestWithoutStaging: the simulation can fail. With nodes that make every key current as soon as they see it, promise 1
// does not hold.
func TestWithoutStaging(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for seed := range 100 {
		p := drawPlan.Example(seed)
		p.Setup.Eager = true
		_, violated := inBubble(t, p.Setup, p.play)
		if violated != nil && strings.Contains(violated.Error(), "cannot open") {
			t.Logf("plan %d: %v", seed, violated)
			return
		}
	}
	t.Error("100 plans without staging broke no promise: the simulation sees nothing")
}

// TestPlansDoWhatMatters: promises hold easily where nothing happens.
func TestPlansDoWhatMatters(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	seen := map[string]int{}
	for seed := range 20 {
		p := drawPlan.Example(seed)
		story, _ := inBubble(t, p.Setup, p.play)
		for line := range strings.Lines(story) {
			for _, what := range []string{", in ", "withdraw: ", "refused", "seals under", "far behind", "cut", "stall", "lose its file"} {
				if strings.Contains(line, what) {
					seen[what]++
				}
			}
		}
	}
	t.Log(seen)
	for _, what := range []string{", in ", "withdraw: ", "refused", "far behind", "cut", "stall", "lose its file"} {
		if seen[what] == 0 {
			t.Errorf("20 plans, and not once %q", what)
		}
	}
	if seen["seals under"] < 2*seen[", in "] {
		t.Errorf("%d rotations, and only %d times a node began to seal under another key", seen[", in "], seen["seals under"])
	}
}
