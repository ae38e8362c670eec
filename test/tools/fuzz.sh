#!/usr/bin/env bash
# fuzz.sh runs every fuzz target of the module for FUZZTIME (20s); go test takes one target at a time.
set -euo pipefail
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-20s}
count=0
while IFS=: read -r file target; do
	package=$(dirname "$file")
	echo "fuzz: $target in $package for $FUZZTIME"
	"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$package"
	count=$((count + 1))
done < <(grep -rE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+\(' . | sed -E 's/^([^:]+):func (Fuzz[A-Za-z0-9_]+).*/\1:\2/')
echo "fuzz: $count targets"
[[ $count -gt 0 ]] # none at all means that the search above is broken
