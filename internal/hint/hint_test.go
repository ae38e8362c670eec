package hint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func TestOf(t *testing.T) {
	t.Parallel()
	plain := errors.New("plain")
	inner := hint.Wrap(plain, "inner")
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"nil":              {nil, ""},
		"none":             {plain, ""},
		"empty advice":     {hint.Wrap(plain, ""), ""},
		"one":              {inner, "inner"},
		"under %w":         {fmt.Errorf("opening: %w", inner), "inner"},
		"outermost":        {hint.Wrap(fmt.Errorf("opening: %w", inner), "outer"), "outer"},
		"joined":           {errors.Join(plain, inner, hint.Wrap(plain, "later")), "inner"},
		"outside the join": {hint.Wrap(errors.Join(inner, plain), "outer"), "outer"},
	} {
		if got := hint.Of(tc.err); got != tc.want {
			t.Errorf("%s: Of = %q, want %q", name, got, tc.want)
		}
	}
}

func TestWrapChangesNothingElse(t *testing.T) {
	t.Parallel()
	if hint.Wrap(nil, "advice") != nil {
		t.Fatal("a nil error became an error")
	}
	cause := &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist}
	err := hint.Wrap(fmt.Errorf("reading: %w", cause), "create it")
	if got, want := err.Error(), "reading: open /x: file does not exist"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("errors.Is no longer finds the cause")
	}
	if got, ok := errors.AsType[*fs.PathError](err); !ok || got != cause {
		t.Error("errors.As no longer finds the cause")
	}
}
