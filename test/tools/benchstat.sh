#!/usr/bin/env bash
# benchstat.sh FOLDER compares the ratios of the last run of `make bench` with those of the one before: a difference that
# may be noise is shown as "~". Below are the figures of which a run has one value: both values, and no judgement. Without
# an earlier run there is nothing to compare; without benchstat, which is fetched once, that is said, and is no failure.
set -uo pipefail
GO=${GO:-go}
tool=("$GO" tool -modfile=test/tools/benchstat/go.mod benchstat)
previous=$1/previous.txt latest=$1/latest.txt

[[ -f $previous && -f $latest ]] || exit 0
echo
echo "compared with the run before (p50-ratio: less is better; rate-ratio: more is better):"
echo
if ! "${tool[@]}" -filter '.name:KMS /who:plugin /delay:0s .unit:(p50-ratio OR rate-ratio)' \
	-table /who -row /profile,/op,/clients previous="$previous" latest="$latest"; then
	echo "NOT compared: benchstat cannot be had or run here"
fi
echo
echo "figures of which a run has one value: before, and now:"
echo
"${tool[@]}" -filter '.name:Figure' previous="$previous" latest="$latest" |
	sed -n 's/ ± ∞ ¹//g; s/ *~ (p=.*$//; s/^Figure\///p'
echo "all rounds: ${tool[*]} $previous $latest"
