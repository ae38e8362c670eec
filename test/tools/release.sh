#!/usr/bin/env bash
# release.sh makes dist/ from the commit that is checked out: for each architecture an archive, one with Go's FIPS 140-3
# module, and packages (deb, rpm, apk); for each of them an SBOM; one statement of provenance; and SHA256SUMS,
# which sign.sh signs where there is a key. What is not committed is not in it. Anyone who has the same commit, Go, C compiler and C library gets the same bytes, in whatever folder, as
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
export GOFLAGS=-mod=readonly GOWORK=off GOEXPERIMENT='' GOAMD64=v1 GOARM64=v8.0 GOFIPS140=off CGO_ENABLED=1 GODEBUG=''
export CGO_CFLAGS=-O2 CGO_CPPFLAGS='' CGO_CXXFLAGS=-O2 CGO_FFLAGS=-O2 CGO_LDFLAGS=-O2
unset TAR_OPTIONS GZIP
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/common"
git archive HEAD | tar -x -C "$work/source"

# The module that CMVP certificate 5247 names; docs/hsm-support.md.
fips_module=v1.0.0

# build GOARCH COMPILER FILE [FLAG...]. A build ID would be of the folder as well; -buildvcs has nothing to find in an archive.
build() {
	(cd "$work/source" && GOOS=linux GOARCH=$1 CC=$2 "$GO" build -trimpath -buildvcs=false "${@:4}" \
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

# common fills what every archive has, beside the program: documents, man pages, completion scripts, licences of what is linked in.
common() {
	local into=$work/common program=$1 dir path file
	cp -r "$work/source"/{LICENSE,README.md,CHANGELOG.md,FORMAT.md,SECURITY.md,CONTRIBUTING.md,docs} "$into/"
	mkdir "$into/completion" "$into/licenses" "$into/man"
	"$work/program-man" man "$into/man"
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

# about PROGRAM COMPILER: what a program was built with.
about() {
	echo "version $version"
	echo "commit $commit"
	"$GO" version -m "$1" | sed -n '1s/.*: /go /p; s/.*build\tGOFIPS140=/go fips module /p'
	echo "c compiler $("$2" --version | head -n 1)"
	echo "c library $("$2" -print-file-name=libc.so.6 | xargs -r sha256sum | cut -d' ' -f1)"
}

# sbom PROGRAM FILE: the list of what is in FILE of dist, which holds the program, beside it.
sbom() {
	"$work/release" sbom -program "$1" -name "$2" -version "$version" >"dist/$2.cdx.json"
}

# pack PROGRAM NAME COMPILER: the archive. Order, times, owners and modes are fixed, and gzip keeps neither name nor time.
pack() {
	local name=$2
	cp -r "$work/common" "$work/$name"
	cp "$1" "$work/$name/hsm-kms"
	about "$1" "$3" >"$work/$name/build.txt"
	chmod -R u=rwX,go=rX "$work/$name"
	tar --format=posix --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' --sort=name \
		--mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$name" | gzip -9n >"dist/$name.tar.gz"
	sbom "$1" "$name.tar.gz"
}

# stage fills what the packages install beside the program: units, the user, man pages, completion, documents. The units are
# those of a configuration that names no vendor; `hsm-kms manifests systemd` makes those of the configuration that is used.
stage() {
	local into=$work/stage program=$1 page zipped
	mkdir -p "$into"/{units,sysusers,man,etc}
	sed 's|module: .*|module: /usr/lib/pkcs11/vendor.so|; s|pinFile: .*|pinFile: hsm-pin|' \
		"$work/source/cmd/hsm-kms/internal/config/example.yaml" >"$into/etc/config.yaml"
	(
		cd "$into/etc"
		for file in hsm-kms.service hsm-kms.socket; do
			"$program" manifests systemd --config config.yaml --program /usr/bin/hsm-kms --file "$file" |
				sed "s|^# /etc/systemd/system/|# |; s|--config .*config.yaml|--config /etc/hsm-kms/config.yaml|" >"$into/units/$file"
		done
		"$program" manifests systemd --config config.yaml --program /usr/bin/hsm-kms --file hsm-kms.conf |
			sed 's|^# /etc/sysusers.d/|# |' >"$into/sysusers/hsm-kms.conf"
	)
	for page in "$work/common/man"/*.1; do
		zipped=$into/man/$(basename "$page").gz
		gzip -9n <"$page" >"$zipped"
	done
	chmod -R u=rwX,go=rX "$into"
}

# packages GOARCH PROGRAM: deb, rpm and apk. Their versions begin with a digit: that of a commit without a tag is 0+git.COMMIT.
packages() {
	local kind file glibc number=0+git.$version
	[[ $version != v[0-9]* ]] || number=${version#v}
	glibc=$(grep -aoE 'GLIBC_[0-9]+\.[0-9]+' "$2" | sort -Vu | tail -n 1)
	sed "s|@ARCH@|$1|; s|@GLIBC@|${glibc#GLIBC_}|; s|@VERSION@|${number//-/.}|; s|@PROGRAM@|$2|; s|@WORK@|$work|g" "$work/source/test/tools/nfpm/nfpm.yaml" >"$work/nfpm.yaml"
	for kind in deb rpm apk; do
		file=$("$work/nfpm" package --config "$work/nfpm.yaml" --packager "$kind" --target dist/ | sed -n 's/^created package: //p')
		sbom "$2" "$(basename "$file")"
	done
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
	GOFIPS140=$fips_module build "$arch" "$cc" "$work/program-$arch-fips"
	arches+=("$arch")
done
[[ ${#arches[@]} -gt 0 ]] || die "nothing could be built"

# Completion scripts, man pages and units are the program's own, and only that of this machine can be run.
host=$("$GO" env GOHOSTARCH)
build "$host" "$(compiler "$host")" "$work/program-man" -tags man
(cd "$work/source" && "$GO" build -buildvcs=false -o "$work/release" ./test/tools/release &&
	"$GO" build -buildvcs=false -modfile=test/tools/nfpm/go.mod -o "$work/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm)
common "$work/program-man"
chmod -R u=rwX,go=rX "$work/common"
stage "$work/program-man"
# nfpm takes the times of directories and scripts from the disk.
find "$work/common" "$work/stage" "$work/source" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +

rm -rf dist && mkdir dist
for arch in "${arches[@]}"; do
	cc=$(compiler "$arch")
	pack "$work/program-$arch" "hsm-kms-$version-linux-$arch" "$cc"
	pack "$work/program-$arch-fips" "hsm-kms-$version-linux-$arch-fips" "$cc"
	packages "$arch" "$work/program-$arch"
done
"$work/release" provenance -commit "$commit" -version "$version" -time "$SOURCE_DATE_EPOCH" \
	-toolchain "$(about "$work/program-${arches[0]}" "$(compiler "${arches[0]}")")" dist/* >"$work/provenance"
mv "$work/provenance" "dist/hsm-kms-$version.intoto.json"
(cd dist && sha256sum -- hsm-kms* | tee SHA256SUMS)
test/tools/sign.sh
