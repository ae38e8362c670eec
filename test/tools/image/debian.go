package main

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/test/tools/bom"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

//go:embed debian.txt
var pinned string

// maxPackage is more than any package of the list has.
const maxPackage = 32 << 20

// libraries is the layer of the packages for arch, with the few files that a C library looks for.
func libraries(ctx context.Context, arch string, t time.Time) (*layer, error) {
	l := newLayer(t)
	for line := range strings.Lines(pinned) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != arch {
			continue
		}
		deb, err := fetch(ctx, fields[1], fields[2])
		if err != nil {
			return nil, err
		}
		if err := l.unpack(ctx, deb); err != nil {
			return nil, fmt.Errorf("unpacking %s: %w", path.Base(fields[1]), err)
		}
		l.packages = append(l.packages, component(fields[1], arch, fields[2]))
		if match := regexp.MustCompile(`/libc6_(\d+\.\d+)-`).FindStringSubmatch(fields[1]); match != nil {
			l.glibc = match[1]
		}
	}
	if l.glibc == "" {
		return nil, fmt.Errorf("debian.txt has no libc6 for %s", arch)
	}
	return l, errors.Join(
		l.add("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n")),
		l.add("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")),
		l.add("etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n")), // an HSM in the network has a name
		l.put("tmp", file{mode: 0o1777, folder: true}),
		l.put("lib", file{mode: 0o777, link: "usr/lib"}),
		l.put("lib64", file{mode: 0o777, link: "usr/lib64"}),
	)
}

// component is a package of the list as an SBOM has it: its file is NAME_VERSION_ARCH.deb.
func component(where, arch, sum string) bom.Component {
	name, rest, _ := strings.Cut(path.Base(where), "_")
	version, _, _ := strings.Cut(rest, "_")
	return bom.Debian(name, version, arch, sum)
}

// fetch returns the package, from the cache or from Debian's mirrors. Its checksum decides, not where it came from.
func fetch(ctx context.Context, where, sum string) ([]byte, error) {
	root, err := kubebin.CacheRoot()
	if err != nil {
		return nil, err
	}
	cached := filepath.Join(root, "debs", sum+".deb")
	if deb, err := os.ReadFile(cached); err == nil && blobOf(deb).digest == "sha256:"+sum { //nolint:gosec // our own cache
		return deb, nil
	}
	deb, err := download(ctx, "http://deb.debian.org/"+(&url.URL{Path: where}).EscapedPath())
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w (where the mirror has a newer version only, renew test/tools/image/debian.txt)", where, err)
	}
	if got := blobOf(deb).digest; got != "sha256:"+sum {
		return nil, fmt.Errorf("%s has the checksum %s, and debian.txt pins %s", where, got, sum)
	}
	if err := os.MkdirAll(filepath.Dir(cached), 0o755); err != nil { //nolint:gosec // packages, nothing secret
		return nil, fmt.Errorf("making the cache folder: %w", err)
	}
	return deb, atomicfile.Replace(cached, deb, 0o644)
}

func download(ctx context.Context, from string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	return io.ReadAll(io.LimitReader(response.Body, maxPackage))
}

// unpack adds the files of a package, which is an ar archive (deb(5)). Its control file goes where scanners of images look for
// what is installed.
func (l *layer) unpack(ctx context.Context, deb []byte) error {
	for _, member := range []string{"control.tar.xz", "data.tar.xz"} {
		packed, err := arMember(deb, member)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "xz", "-dc")
		cmd.Stdin = bytes.NewReader(packed)
		unpacked, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("running xz: %w (install it: apt-get install xz-utils)", err)
		}
		if err := l.unpackTar(unpacked); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) unpackTar(data []byte) error {
	for archive := tar.NewReader(bytes.NewReader(data)); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		name := path.Clean(strings.TrimPrefix(header.Name, "./"))
		if name == "control" {
			match := regexp.MustCompile(`(?m)^Package: (\S+)$`).FindSubmatch(content)
			if match == nil {
				return errors.New("the control file names no package")
			}
			name = "var/lib/dpkg/status.d/" + string(match[1])
		} else if name = place(name); name == "" {
			continue
		}
		switch header.Typeflag {
		case tar.TypeReg:
			err = l.add(name, header.Mode&0o755, content) // set-user-ID has no place in this image
		case tar.TypeSymlink:
			target := header.Linkname
			if strings.HasPrefix(target, "/lib/") {
				target = "/usr" + target
			}
			err = l.put(name, file{mode: 0o777, link: target})
		}
		if err != nil {
			return err
		}
	}
}

// place is where a file of a package goes, with all libraries below usr as Debian has it since 12; "": nowhere. Libraries and
// their licences are kept; programs, manuals and other control files are not.
func place(name string) string {
	if strings.HasPrefix(name, "lib/") || strings.HasPrefix(name, "lib64/") {
		name = "usr/" + name
	}
	kept := strings.HasPrefix(name, "usr/lib/") || strings.HasPrefix(name, "usr/lib64/")
	licence := strings.HasPrefix(name, "usr/share/doc/") && (path.Base(name) == "copyright" || path.Dir(name) == "usr/share/doc")
	if kept || licence {
		return name
	}
	return ""
}

// arMember returns a file of an ar archive.
func arMember(data []byte, name string) ([]byte, error) {
	const magic, header = "!<arch>\n", 60
	rest, found := bytes.CutPrefix(data, []byte(magic))
	for found && len(rest) >= header {
		size, err := strconv.Atoi(strings.TrimSpace(string(rest[48:58])))
		if err != nil || size < 0 || size > len(rest)-header {
			break
		}
		if strings.TrimRight(string(rest[:16]), " /") == name {
			return rest[header : header+size], nil
		}
		rest = rest[min(header+size+size%2, len(rest)):]
	}
	return nil, fmt.Errorf("the package has no %s", name)
}
