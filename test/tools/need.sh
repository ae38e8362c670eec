#!/usr/bin/env bash
# need.sh makes sure that what the demo and the tests need from the system is there: SoftHSM, and a C compiler for
# the PKCS#11 binding. What is there already costs nothing: no network, no package index. What is missing is installed
# where the user may do that (root, or sudo without a password; Homebrew needs neither); else the exact command to
# type is printed and the exit code is 1.
#
#   test/tools/need.sh              SoftHSM, C compiler
#   test/tools/need.sh shellcheck   and these too (shellcheck, opensc, aspell with its English dictionaries)
#   test/tools/need.sh tokens       and the other tokens of test/tokens: Debian with root only, elsewhere their tests are
#                                   skipped and say so
#   test/tools/need.sh cluster      and what makes nodes (mmdebstrap, nsenter, ip), likewise
#   test/tools/need.sh checkers     and what judges the manifests (systemd-analyze, promtool, prometheus), likewise. Their
#                                   packages are a service manager and a server: they are not installed but unpacked, in
#                                   a folder of the user's cache that `make` has in its PATH
set -euo pipefail

# Keep it equal to CHECKERS in the Makefile.
checkers=${XDG_CACHE_HOME:-$HOME/.cache}/hsm-kms/checkers
PATH=$PATH:$checkers/bin

# The folders of test/softhsm/module.go. Keep the two lists equal: what this script accepts, the tests must find.
softhsm_modules=(
	/usr/lib/softhsm/libsofthsm2.so
	/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so
	/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so
	/usr/lib64/pkcs11/libsofthsm2.so
	/usr/lib64/softhsm/libsofthsm2.so
	/usr/lib/pkcs11/libsofthsm2.so
	/usr/local/lib/softhsm/libsofthsm2.so
	/opt/homebrew/lib/softhsm/libsofthsm2.so
)

has() { command -v "$1" >/dev/null 2>&1; }

has_softhsm() {
	has softhsm2-util || return 1
	local file
	for file in "${SOFTHSM2_MODULE:-}" "${softhsm_modules[@]}"; do
		[[ -n $file && -f $file ]] && return 0
	done
	return 1
}

# present NAME: is it there?
present() {
	case $1 in
	softhsm) has_softhsm ;;
	cc) has gcc || has cc || has clang ;;
	opensc) has pkcs11-tool ;;
	shellcheck) has shellcheck ;;
	aspell) has aspell && aspell dump dicts | grep -q '^en_GB' ;;
	cluster) has mmdebstrap && has nsenter && has ip ;;
	checkers) has systemd-analyze && has promtool && has prometheus ;;
	tokens) has pkcsslotd && has certutil && has p11-kit && has swtpm && has tpm2_ptool && has tpm2_flushcontext &&
		has tpm2-abrmd && has dbus-daemon ;;
	*) echo "need.sh: I know nothing of '$1'" >&2 && exit 2 ;;
	esac
}

# package MANAGER NAME: what the package is called there.
package() {
	case $1:$2 in
	apt:softhsm) echo softhsm2 ;;
	brew:shellcheck | apt:shellcheck | apk:shellcheck) echo shellcheck ;;
	dnf:shellcheck) echo ShellCheck ;;
	apt:aspell | apk:aspell | dnf:aspell) echo aspell aspell-en ;;
	apt:cc) echo gcc libc6-dev ;;
	apk:cc) echo gcc musl-dev ;;
	dnf:cc | brew:cc) echo gcc ;;
	apt:cluster) echo mmdebstrap util-linux iproute2 ;;
	apt:tokens)
		echo opencryptoki libnss3-tools p11-kit p11-kit-modules libtpm2-pkcs11-1 libtpm2-pkcs11-tools \
			swtpm swtpm-tools libtss2-tcti-swtpm0 tpm2-tools \
			tpm2-abrmd libtss2-tcti-tabrmd0 dbus-daemon
		;;
	*) echo "$2" ;;
	esac
}

# unpack_checkers unpacks the packages, and the libraries that they need beside the C library, in a folder of their own.
# Nothing of it is installed, started or run by a maintainer's script.
unpack_checkers() {
	local root=$checkers/root arch name
	echo "need.sh: unpacking the Debian packages systemd and prometheus in $checkers; nothing is installed or started" >&2
	rm -rf "$checkers" && mkdir -p "$root" "$checkers/debs" "$checkers/bin"
	apt-get update >&2
	apt-get -s -o Dir::State::status=/dev/null install --no-install-recommends systemd prometheus |
		awk '$1 == "Inst" && $2 !~ /^(libc6|libc-bin|dpkg|perl|init|prometheus-node)/ { print $2 }' >"$checkers/packages"
	(cd "$checkers/debs" && xargs apt-get download >&2 <"$checkers/packages")
	for name in "$checkers"/debs/*.deb; do
		dpkg-deb --extract "$name" "$root"
	done
	rm -rf "$checkers/debs"
	ln -s ../root/usr/bin/promtool ../root/usr/bin/prometheus "$checkers/bin/"
	arch=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch)
	cat >"$checkers/bin/systemd-analyze" <<-END
		#!/bin/sh
		# The units that ours name are found in this folder, the libraries too.
		export LD_LIBRARY_PATH='$root/usr/lib/$arch/systemd:$root/lib/$arch/systemd:$root/usr/lib/$arch:$root/lib/$arch'
		export SYSTEMD_UNIT_PATH='$root/lib/systemd/system:$root/usr/lib/systemd/system:'
		exec '$root/usr/bin/systemd-analyze' "\$@"
	END
	chmod 755 "$checkers/bin/systemd-analyze"
}

missing=()
for name in softhsm cc "$@"; do
	present "$name" && continue
	if [[ $name == tokens || $name == checkers || $name == cluster ]] && { ! has apt-get || [[ $(id -u) -ne 0 ]]; }; then
		echo "need.sh: $name are installed on Debian by root only; the tests of what is missing are skipped" >&2
		continue
	fi
	if [[ $name == checkers ]]; then
		unpack_checkers
		present checkers && continue
		echo "need.sh: systemd-analyze, promtool or prometheus is still not found in $checkers" >&2
		exit 1
	fi
	missing+=("$name")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

manager=
for try in apt dnf apk brew; do
	command=$try
	[[ $try == apt ]] && command=apt-get
	if has "$command"; then
		manager=$try
		break
	fi
done
if [[ -z $manager ]]; then
	echo "need.sh: missing: ${missing[*]}, and none of apt, dnf, apk, brew is here; please install them" >&2
	exit 1
fi

packages=()
for name in "${missing[@]}"; do
	read -ra names <<<"$(package "$manager" "$name")"
	packages+=("${names[@]}")
done

case $manager in
apt) install="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ${packages[*]}" ;;
dnf) install="dnf install -y ${packages[*]}" ;;
apk) install="apk add ${packages[*]}" ;;
brew) install="brew install ${packages[*]}" ;;
esac

if [[ $manager == brew || $(id -u) -eq 0 ]]; then
	run=(sh -c "$install")
elif has sudo && sudo -n true 2>/dev/null; then
	run=(sudo -n sh -c "$install")
else
	echo "need.sh: missing: ${missing[*]}. Please run, and then try again:" >&2
	echo "    sudo sh -c '$install'" >&2
	exit 1
fi
echo "need.sh: installing ${packages[*]} (missing: ${missing[*]})" >&2
"${run[@]}" >&2 || {
	echo "need.sh: that failed; please install by hand: $install" >&2
	exit 1
}
for name in "${missing[@]}"; do
	present "$name" || {
		echo "need.sh: $name is still not found after installing ${packages[*]}" >&2
		exit 1
	}
done
