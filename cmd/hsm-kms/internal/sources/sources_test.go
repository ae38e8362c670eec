package sources

import (
	"slices"
	"strings"
	"testing"
)

// An etcd that the overrides name too is read once: each of its objects would be counted twice.
func TestClusters(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ endpoints, overrides, want string }{
		"none":                {"a:1,b:1", "", "a:1,b:1"},
		"another":             {"a:1", "/events#b:1;c:1", "a:1 b:1,c:1"},
		"the same":            {"a:1,b:1", "/events#a:1;b:1", "a:1,b:1"},
		"in another order":    {"a:1,b:1", "/events#b:1;a:1", "a:1,b:1"},
		"with its scheme":     {"a:1", "/events#http://a:1", "a:1"},
		"a part of it":        {"https://a:1,https://b:1", "/events#https://B:1/", "https://a:1,https://b:1"},
		"more of it":          {"a:1", "/events#b:1;a:1", "a:1,b:1"},
		"two of one":          {"a:1", "/events#b:1,apps/deployments#b:1;c:1", "a:1 b:1,c:1"},
		"another port":        {"a:1", "/events#a:2", "a:1 a:2"},
		"another Unix socket": {"unix:///a", "/events#unix:///b", "unix:///a unix:///b"},
	} {
		f := &Options{Endpoints: strings.Split(c.endpoints, ","), Overrides: strings.FieldsFunc(c.overrides, func(r rune) bool { return r == ',' })}
		clusters, err := f.clusters()
		var got []string
		for _, endpoints := range clusters {
			got = append(got, strings.Join(endpoints, ","))
		}
		if err != nil || !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
