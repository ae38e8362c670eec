#!/usr/bin/env bash
# release.sh makes dist/ from the commit that is checked out: an archive per architecture, and SHA256SUMS. What is not
# committed is not in it. Anyone who has the same commit, Go, C compiler and C library gets the same bytes, in whatever folder, as
# whatever user; build.txt in each archive says which those were. An architecture without a C compiler is left out, and
# that is said. SKIP_ARCHES names some to leave out.
set -euo pipefail
cd "$(dirname "$0")/../.."
GO=${GO:-go}
say() { echo "release: $*" >&2; }
die() {
	say "$@"
	exit 1
}

[[ $(uname -s) == Linux ]] || die "releases are made on Linux: GNU tar, and a C compiler for it, are needed"
commit=$(git rev-parse --verify HEAD) || die "this is no checkout of git; clone the repository and try again"
# A fixed length: git's own depends on how many objects this clone happens to have.
version=$(git describe --tags --always --abbrev=12 HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct HEAD)
[[ -z $(git status --porcelain) ]] || say "this folder has changes that are not committed: they are left out"

# What the user's environment or `go env -w` may have set must not reach the bytes.
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
export GOFLAGS=-mod=readonly GOWORK=off GOEXPERIMENT='' GOAMD64=v1 GOARM64=v8.0 GOFIPS140=off CGO_ENABLED=1
export CGO_CFLAGS=-O2 CGO_CPPFLAGS='' CGO_CXXFLAGS=-O2 CGO_FFLAGS=-O2 CGO_LDFLAGS=-O2
unset TAR_OPTIONS GZIP
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/common"
git archive HEAD | tar -x -C "$work/source"

# build GOARCH COMPILER FILE. A build ID would be of the folder as well; -buildvcs has nothing to find in an archive.
build() {
	(cd "$work/source" && GOOS=linux GOARCH=$1 CC=$2 "$GO" build -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X main.version=$version -X main.commit=$commit" -o "$3" ./cmd/hsm-kms)
}

# compiler GOARCH: the C compiler that makes programs for it; nothing if there is none.
compiler() {
	local triple=x86_64-linux-gnu
	[[ $1 == arm64 ]] && triple=aarch64-linux-gnu
	if [[ $("$GO" env GOHOSTARCH) == "$1" ]]; then
		command -v "${CC:-gcc}" || command -v cc || true
	else
		command -v "$triple-gcc" || true
	fi
}

# common fills what every archive has, beside the program: documents, completion scripts, licences of what is linked in.
common() {
	local into=$work/common program=$1 dir path file
	cp -r "$work/source"/{LICENSE,README.md,CHANGELOG.md,FORMAT.md,SECURITY.md,CONTRIBUTING.md,docs} "$into/"
	mkdir "$into/completion" "$into/licenses"
	"$program" completion bash >"$into/completion/hsm-kms.bash"
	"$program" completion zsh >"$into/completion/_hsm-kms"
	"$program" completion fish >"$into/completion/hsm-kms.fish"
	# A list of two columns: the module and its folder. Our own is LICENSE.
	(cd "$work/source" && "$GO" list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./cmd/hsm-kms) |
		sort -u | while read -r path dir; do
		[[ -n $path ]] || continue
		for file in "$dir"/{LICENSE,LICENCE,COPYING,NOTICE}*; do
			[[ -f $file ]] || continue
			mkdir -p "$into/licenses/$path" && cp "$file" "$into/licenses/$path/"
		done
		[[ -d $into/licenses/$path ]] || die "$path has no licence file: look before it is given away"
	done
	mkdir "$into/licenses/go"
	cp "$("$GO" env GOROOT)/LICENSE" "$into/licenses/go/"
}

# pack GOARCH COMPILER: the archive. Order, times, owners and modes are fixed, and gzip keeps neither name nor time.
pack() {
	local name=hsm-kms-$version-linux-$1
	cp -r "$work/common" "$work/$name"
	cp "$work/program-$1" "$work/$name/hsm-kms"
	{
		echo "version $version"
		echo "commit $commit"
		"$GO" version -m "$work/program-$1" | sed -n '1s/.*: /go /p'
		echo "c compiler $("$2" --version | head -n 1)"
		echo "c library $("$2" -print-file-name=libc.so.6 | xargs -r sha256sum | cut -d' ' -f1)"
	} >"$work/$name/build.txt"
	chmod -R u=rwX,go=rX "$work/$name"
	tar --format=posix --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' --sort=name \
		--mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$name" | gzip -9n >"dist/$name.tar.gz"
}

arches=()
for arch in amd64 arm64; do
	[[ " ${SKIP_ARCHES:-} " != *" $arch "* ]] || continue
	cc=$(compiler "$arch")
	if [[ -z $cc ]]; then
		say "linux/$arch is LEFT OUT: there is no C compiler for it (on Debian: apt-get install crossbuild-essential-$arch)"
		continue
	fi
	build "$arch" "$cc" "$work/program-$arch"
	arches+=("$arch")
done
[[ ${#arches[@]} -gt 0 ]] || die "nothing could be built"

# The completion scripts are the program's own, and only that of this machine can be run.
host=$("$GO" env GOHOSTARCH)
[[ -f $work/program-$host ]] || build "$host" "$(compiler "$host")" "$work/program-$host"
common "$work/program-$host"

rm -rf dist && mkdir dist
for arch in "${arches[@]}"; do
	pack "$arch" "$(compiler "$arch")"
done
(cd dist && sha256sum -- *.tar.gz | tee SHA256SUMS)
