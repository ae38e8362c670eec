#!/usr/bin/env bash
# compat.sh runs the core of the end-to-end tests on the kube-apiserver of other releases: those that are named, or all.
# It prints a line for each, as docs/compatibility.md has them, and fails when one fails.
#
#   test/tools/compat.sh 1.31 1.32    builds what is missing, about 4 CPU minutes each
#   test/tools/compat.sh              all of them
#   test/tools/compat.sh -cached      the oldest and the newest of what is built already, but for the newest of all, of
#                                     which `make e2e` runs all tests; what is not run is named
#
# HSM_KMS_BIN is the hsm-kms that is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
GO=${GO:-go}

# Start, read, write, the plugin away and back, limits, a rotation on three nodes, an outage hold; what etcd holds, and its migration.
core='^(TestSecretThroughTheAPI|TestAPIServerStartsBeforePlugin|TestPluginRestartsWhileAPIServerServes|TestPluginDownTurnsReadyzRed|TestLimitsOfTheAPIServer|TestRotationOnThreeNodes|TestHold|TestEvidence|TestMigrate)$'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$GO" build -o "$work/tools" ./test/tools
mapfile -t releases < <("$work/tools" -releases)
cached=()
if [[ ${1:-} == -cached ]]; then
	cached=(-cached)
	unset 'releases[-1]'
elif [[ $# -gt 0 ]]; then
	releases=("$@")
fi
"$GO" test -tags e2e -c -o "$work/e2e.test" ./test/e2e
"$GO" test -tags e2e -c -o "$work/evidence.test" ./test/evidence/e2e

# there puts the folder of a release into dir. It fails where only what is built counts, and that is not.
there() {
	local code=0
	dir=$("$work/tools" "${cached[@]}" "$1") || code=$?
	[[ $code -eq 0 || $code -eq 3 ]] || exit "$code"
	return "$code"
}

if [[ ${#cached[@]} -gt 0 ]]; then
	built=()
	for release in "${releases[@]}"; do
		if there "$release"; then built+=("$release"); fi
	done
	chosen=("${built[@]:0:1}")
	[[ ${#built[@]} -lt 2 ]] || chosen+=("${built[-1]}")
	for release in "${releases[@]}"; do
		[[ " ${chosen[*]} " == *" $release "* ]] ||
			echo "NOT RUN: the core of the tests on kube-apiserver $release (make compat RELEASE=$release)"
	done
	releases=("${chosen[@]}")
fi

status=0
for release in "${releases[@]}"; do
	there "$release"
	version=$("$dir/kube-apiserver" --version)
	begin=$SECONDS
	result=passed
	for part in e2e evidence/e2e; do
		(cd "test/$part" && KUBEBUILDER_ASSETS=$dir "$work/${part%/e2e}.test" -test.run "$core" -test.parallel 2 -test.timeout 20m) >"$work/log" 2>&1 || {
			result=FAILED
			status=1
			cat "$work/log"
		}
	done
	echo "| $release | ${version#Kubernetes v} | $(date -u +%F) | $result | $((SECONDS - begin)) s |"
done
exit "$status"
