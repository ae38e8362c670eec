package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestArMember(t *testing.T) {
	member := func(name, content string) string {
		padding := strings.Repeat("\n", len(content)%2)
		return fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n%s%s", name, 0, 0, 0, "100644", len(content), content, padding)
	}
	good := "!<arch>\n" + member("debian-binary", "2.0\n") + member("odd/", "abc") + member("data.tar.xz", "data")
	for _, test := range []struct{ archive, name, want string }{
		{good, "data.tar.xz", "data"},
		{good, "odd", "abc"},
		{good, "control.tar.xz", ""},
		{good[:len(good)-1], "data.tar.xz", ""}, // cut off
		{strings.Replace(good, "!<arch>", "!<larch>", 1), "data.tar.xz", ""},
		{"", "data.tar.xz", ""},
		{"!<arch>\n" + fmt.Sprintf("%-48s%-10d`\n", "data.tar.xz", -60), "data.tar.xz", ""},
	} {
		content, err := arMember([]byte(test.archive), test.name)
		if string(content) != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q has %q, %v; want %q", test.archive, content, err, test.want)
		}
	}
}

func TestPlace(t *testing.T) {
	for name, want := range map[string]string{
		"lib/x86_64-linux-gnu/libc.so.6":          "usr/lib/x86_64-linux-gnu/libc.so.6",
		"lib64/ld-linux-x86-64.so.2":              "usr/lib64/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/libstdc++.so.6": "usr/lib/x86_64-linux-gnu/libstdc++.so.6",
		"usr/share/doc/libc6/copyright":           "usr/share/doc/libc6/copyright",
		"usr/share/doc/libc6/changelog.Debian.gz": "",
		"usr/share/doc/libstdc++6":                "usr/share/doc/libstdc++6", // a link to the folder of another package
		"usr/bin/ldd":                             "",
		"etc/ld.so.conf.d/x86_64-linux-gnu.conf":  "",
		"postinst":                                "",
	} {
		if got := place(name); got != want {
			t.Errorf("%s goes to %q, want %q", name, got, want)
		}
	}
}

// TestLayerIsReproducible: the order in which files are added makes no difference, and no file takes the place of another.
func TestLayerIsReproducible(t *testing.T) {
	names := []string{"a/b", "a/c", "d"}
	pack := func(order ...int) []byte {
		l := newLayer(time.Unix(1000, 0))
		for _, i := range order {
			if err := l.add(names[i], 0o644, []byte(names[i])); err != nil {
				t.Fatal(err)
			}
		}
		packed, _, err := l.pack()
		if err != nil {
			t.Fatal(err)
		}
		return packed.bytes
	}
	if !bytes.Equal(pack(0, 1, 2), pack(2, 1, 0)) {
		t.Error("equal files give other bytes in another order")
	}
	l := newLayer(time.Unix(1000, 0))
	if l.add("a", 0o644, nil) != nil || l.add("a", 0o644, nil) == nil || l.add("a/b", 0o644, nil) == nil || l.add("x/y", 0o644, nil) != nil || l.add("x", 0o644, nil) == nil {
		t.Error("one file took the place of another")
	}
}

func TestCompareVersions(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"2.36", "2.36", 0}, {"2.4", "2.36", -1}, {"2.38", "2.36", 1}, {"2.2.5", "2.36", -1}, {"2.36.1", "2.36", 1}} {
		if got := compareVersions(test.a, test.b); got != test.want {
			t.Errorf("%s and %s: %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
