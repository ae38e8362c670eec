package docs

import (
	"slices"
	"testing"
)

func TestScriptOf(t *testing.T) {
	t.Parallel()
	const text = "# T\n```sh\nnot run\n```\n<!-- tested -->\n```sh\nmake build\nrun a  #=> one\nrun b\n```\nwords\n<!-- tested -->\n```sh\nrun c #=> two\n```\n"
	s, err := scriptOf(text)
	if err != nil || !slices.Equal(s.Lines, []string{"run a  ", "run b", "run c "}) || !slices.Equal(s.Promises, []string{"one", "two"}) {
		t.Fatalf("%+v, %v", s, err)
	}
	for output, ok := range map[string]bool{"one two": true, "zero one and two": true, "two one": false, "one": false, "": false} {
		if err := s.kept(output); (err == nil) != ok {
			t.Errorf("%q: %v", output, err)
		}
	}
	for _, bad := range []string{"<!-- tested -->", "<!-- tested -->\n", "<!-- tested -->\n\n```sh\nx\n```", "<!-- tested -->\n```yaml\nx\n```", "<!-- tested -->\n```sh\nx\n"} {
		if s, err := scriptOf(bad); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

func TestLinksAndAnchors(t *testing.T) {
	t.Parallel()
	const text = "## Key ring and `key_id`, v2\n[a](b.md#c) `[x](y)` [d](https://e)\n```\n# not a heading\n[f](g)\n```\n"
	if links := linksOf(text); !slices.Equal(links, []string{"b.md#c", "https://e"}) {
		t.Errorf("links %q", links)
	}
	if anchors := anchorsOf(text); len(anchors) != 1 || !anchors["key-ring-and-key_id-v2"] {
		t.Errorf("anchors %v", anchors)
	}
}
