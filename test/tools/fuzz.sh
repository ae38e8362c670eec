#!/usr/bin/env bash
# fuzz.sh runs every fuzz target of the module for FUZZTIME (20s); go test takes one target at a time.
set -euo pipefail
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-20s}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Before Go 1.27 a run that found nothing sometimes ends with this error all the same (golang/go#75804). It comes alone:
# a finding writes a failing input, and a panic says so.
ended_in_time() {
	grep -A1 -e '^--- FAIL: ' "$log" | grep -qx '    context deadline exceeded' &&
		! grep -qE 'Failing input written|panic:|fuzzing process' "$log"
}

count=0
while IFS=: read -r file target; do
	package=$(dirname "$file")
	echo "fuzz: $target in $package for $FUZZTIME"
	if ! "$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$package" 2>&1 | tee "$log"; then
		ended_in_time
		echo "fuzz: nothing found (golang/go#75804)"
	fi
	count=$((count + 1))
done < <(grep -rE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+\(' . | sed -E 's/^([^:]+):func (Fuzz[A-Za-z0-9_]+).*/\1:\2/')
echo "fuzz: $count targets"
[[ $count -gt 0 ]] # none at all means that the search above is broken
