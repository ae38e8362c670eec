package modulefile_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/hsm/modulefile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// library returns the start of a shared library with the given ELF machine, class 64 bit, little-endian, and type.
func library(machine, kind byte) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20], b[52], b[58] = kind, machine, 1, 64, 64
	return b
}

const (
	x86_64, aarch64      = 62, 183
	typeExec, typeShared = 2, 3
)

func own() byte {
	if runtime.GOARCH == "arm64" {
		return aarch64
	}
	return x86_64
}

// place makes a folder root/sub with a good module in it, and returns root and the module's path.
func place(t *testing.T) (root, module string) {
	t.Helper()
	if runtime.GOOS == "darwin" || runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("the samples are 64-bit ELF")
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	module = filepath.Join(root, "sub", "m.so")
	if err := os.Mkdir(filepath.Dir(module), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, module, library(own(), typeShared))
	return root, module
}

func put(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// sample is a change to a good module, and what Check says then.
type sample struct {
	change func(t *testing.T, root, module string) (path string) // nil: none
	err    error
	text   string // part of the error
}

func checkSamples(t *testing.T, all map[string]sample) {
	t.Helper()
	for name, tc := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, path := place(t)
			if tc.change != nil {
				path = tc.change(t, root, path)
			}
			id, err := modulefile.Check(path, false)
			checkResult(t, path, id, err, tc.err, tc.text)
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	foreign, foreignName := byte(aarch64), "it is built for aarch64, this is x86-64"
	if own() == aarch64 {
		foreign, foreignName = x86_64, "it is built for x86-64, this is aarch64"
	}
	checkSamples(t, map[string]sample{
		"good":         {nil, nil, ""},
		"absent":       {func(_ *testing.T, r, _ string) string { return r + "/none.so" }, modulefile.ErrAbsent, "/none.so"},
		"relative":     {func(*testing.T, string, string) string { return "m.so" }, modulefile.ErrAbsent, "not absolute"},
		"folder":       {func(_ *testing.T, r, _ string) string { return r }, modulefile.ErrNotModule, "not a regular file"},
		"below a file": {func(_ *testing.T, _, m string) string { return m + "/x" }, modulefile.ErrUnreadable, "not a directory"},
		"foreign": {func(t *testing.T, _, m string) string {
			put(t, m, library(foreign, typeShared))
			return m
		}, modulefile.ErrNotModule, foreignName},
		"32 bit": {func(t *testing.T, _, m string) string {
			b := make([]byte, 52)
			copy(b, "\x7fELF\x01\x01\x01")
			b[16], b[18], b[20], b[40], b[46] = typeShared, 3, 1, 52, 40
			put(t, m, b)
			return m
		}, modulefile.ErrNotModule, "built for x86 (32 bit)"},
		"a program": {func(t *testing.T, _, m string) string {
			put(t, m, library(own(), typeExec))
			return m
		}, modulefile.ErrNotModule, "not a shared library"},
		"text": {func(t *testing.T, _, m string) string {
			put(t, m, []byte("INPUT(libreal.so)\n"))
			return m
		}, modulefile.ErrNotModule, "not an ELF file"},
		"empty": {func(t *testing.T, _, m string) string {
			put(t, m, nil)
			return m
		}, modulefile.ErrNotModule, "not an ELF file"},
		"the machine's SoftHSM": {func(t *testing.T, _, _ string) string {
			const path = "/usr/lib/softhsm/libsofthsm2.so"
			if _, err := os.Stat(path); err != nil {
				t.Skip("not installed here")
			}
			return path
		}, nil, ""},
	})
}

func TestCheckLinks(t *testing.T) {
	t.Parallel()
	checkSamples(t, map[string]sample{
		"link": {func(t *testing.T, r, m string) string {
			link(t, "sub/m.so", r+"/l.so")
			return r + "/l.so"
		}, nil, ""},
		"link through ..": {func(t *testing.T, r, m string) string {
			link(t, "../sub/./m.so", r+"/sub/l.so")
			return r + "/sub/l.so"
		}, nil, ""},
		"link that loops": {func(t *testing.T, r, _ string) string {
			link(t, "loop.so", r+"/loop.so")
			return r + "/loop.so"
		}, modulefile.ErrUnreadable, "more than 40 links"},
		"link to nowhere": {func(t *testing.T, r, _ string) string {
			link(t, "gone", r+"/l.so")
			return r + "/l.so"
		}, modulefile.ErrAbsent, "/gone"},
	})
}

func checkResult(t *testing.T, path string, id modulefile.Identity, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("err = %v, want %v", err, want)
	}
	if err == nil {
		if id == (modulefile.Identity{}) {
			t.Error("no identity")
		}
		return
	}
	if !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), path) || hint.Of(err) == "" {
		t.Errorf("error %q, hint %q: want %q, the path and a hint", err, hint.Of(err), text)
	}
}

// giveAway makes path belong to somebody else.
func giveAway(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	if err := os.Lchown(path, 12345, 12345); err != nil {
		t.Fatal(err)
	}
}

func TestUnsafe(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(t *testing.T, root, module string) (path string)
		text   string // of the error; "" when it is fine
	}{
		"file, others":     {func(t *testing.T, _, m string) string { chmod(t, m, 0o646); return m }, "mode 0646"},
		"file, group root": {func(t *testing.T, _, m string) string { chmod(t, m, 0o664); return m }, groupText("mode 0664")},
		"own folder":       {func(t *testing.T, r, m string) string { chmod(t, r+"/sub", 0o777); return m }, "/sub (mode 0777"},
		"own folder, sticky": {func(t *testing.T, r, m string) string {
			chmod(t, r+"/sub", 0o777|os.ModeSticky)
			return m
		}, "/sub (mode 1777"},
		"higher folder": {func(t *testing.T, r, m string) string { chmod(t, r, 0o777); return m }, "(mode 0777"},
		"higher folder, sticky": {func(t *testing.T, r, m string) string {
			chmod(t, r, 0o777|os.ModeSticky)
			return m
		}, ""},
		"folder of the link": {func(t *testing.T, r, m string) string {
			mkdir(t, r+"/links", 0o777)
			link(t, m, r+"/links/l.so")
			return r + "/links/l.so"
		}, "/links (mode 0777"},
		"folder of a link between": {func(t *testing.T, r, m string) string {
			mkdir(t, r+"/links", 0o777)
			link(t, "../sub", r+"/links/sub")
			link(t, "links/sub/m.so", r+"/l.so")
			return r + "/l.so"
		}, "/links (mode 0777"},
		"file of another": {func(t *testing.T, _, m string) string { giveAway(t, m); return m }, "m.so belongs to uid 12345"},
		"folder of another": {func(t *testing.T, r, m string) string {
			giveAway(t, r+"/sub")
			return m
		}, "/sub belongs to uid 12345"},
		"link of another": {func(t *testing.T, r, m string) string {
			link(t, m, r+"/l.so")
			giveAway(t, r+"/l.so")
			return r + "/l.so"
		}, "/l.so belongs to uid 12345"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, module := place(t)
			path := tc.change(t, root, module)
			var want error
			if tc.text != "" {
				want = modulefile.ErrUnsafe
			}
			id, err := modulefile.Check(path, false)
			checkResult(t, path, id, err, want, tc.text)
			if _, err := modulefile.Check(path, true); err != nil {
				t.Errorf("allowUnsafe: %v", err)
			}
		})
	}
}

// groupText is text where files of our own have another group than root, and "" where they have group root.
func groupText(text string) string {
	if os.Getegid() == 0 {
		return ""
	}
	return text
}

func mkdir(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
}

func TestAllowUnsafeKeepsTheRest(t *testing.T) {
	t.Parallel()
	_, module := place(t)
	put(t, module, []byte("text"))
	if _, err := modulefile.Check(module, true); !errors.Is(err, modulefile.ErrNotModule) {
		t.Errorf("err = %v, want ErrNotModule", err)
	}
}

func TestEveryFindingIsReported(t *testing.T) {
	t.Parallel()
	root, module := place(t)
	chmod(t, module, 0o666)
	chmod(t, filepath.Dir(module), 0o777)
	chmod(t, root, 0o777)
	_, err := modulefile.Check(module, false)
	if err == nil || strings.Count(err.Error(), "others may write") != 3 {
		t.Errorf("err = %v, want three findings", err)
	}
}

func TestIdentityIsOfTheFile(t *testing.T) {
	t.Parallel()
	root, module := place(t)
	link(t, module, root+"/l.so")
	put(t, root+"/copy.so", library(own(), typeShared))
	first, err1 := modulefile.Check(module, false)
	linked, err2 := modulefile.Check(root+"/l.so", false)
	copied, err3 := modulefile.Check(root+"/copy.so", false)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if first != linked || first == copied {
		t.Errorf("module %v, link %v, copy %v: want the first two alike only", first, linked, copied)
	}
}
