#!/usr/bin/env bash
# lint.sh runs every linter over the whole module, the end-to-end tests included, and fails when one of them finds
# something; all run, so that one run tells everything. What cannot run here is said, not passed over in silence.
set -uo pipefail
GO=${GO:-go}
failed=0

say() { echo "lint: $*"; }

# check NAME COMMAND...: runs it, shows what it says.
check() {
	local name=$1
	shift
	if "$@"; then
		say "$name: ok"
	else
		say "$name: FAILED"
		failed=1
	fi
}

tool() { "$GO" tool -modfile=test/tools/lint/go.mod "$@"; }

# shellcheck disable=SC2317 # called through check
formatted() {
	local files
	files=$(gofmt -l .) || return 1
	[[ -z $files ]] || { echo "not formatted (gofmt -w): $files" && return 1; }
}

# vulnerable: govulncheck ends with 3 for a finding. Its database is on the network; without one it proves nothing.
vulnerable() {
	local out code=0
	out=$(tool govulncheck -tags e2e ./... 2>&1) || code=$?
	if [[ $code -ne 0 && $out == *"fetching vulnerabilities"* ]]; then
		say "govulncheck: NOT run: its database is unreachable"
		return
	fi
	[[ $code -eq 0 ]] || echo "$out"
	check govulncheck test "$code" -eq 0
}

check gofmt formatted
check "go.mod and go.sum" "$GO" mod tidy -diff
check vet "$GO" vet -tags e2e,man ./...
check staticcheck tool staticcheck -tags e2e ./...
vulnerable
if command -v shellcheck >/dev/null; then
	check shellcheck find .ci test -type f '(' -name '*.sh' -o -path .ci/run ')' -exec shellcheck '{}' +
else
	say "shellcheck: NOT run: it is not installed (test/tools/need.sh shellcheck)"
fi
exit "$failed"
