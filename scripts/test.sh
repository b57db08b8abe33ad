#!/usr/bin/env bash
# Runs the parts of make test. Suites mostly wait for kubelets and controllers, so those of
# the node and the control plane run side by side, and what computes runs next to all of them
# with the time that they leave. What they need is built before.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

logs=_output/test
mkdir -p "$logs"
status=0

# part NAME COMMAND... runs the command with its output in a log, and notes how it ended.
part() {
	local name=$1 start=$SECONDS code=0
	shift
	"$@" >"$logs/$name.log" 2>&1 </dev/null || code=$?
	printf '%d %d\n' "$code" $((SECONDS - start)) >"$logs/$name.end"
}

# leftover runs a command when nothing else wants the processor. A session of its own has a
# share of its own where the kernel groups processes by sessions, so that is lowered, too.
leftover() {
	# shellcheck disable=SC2016,SC2317 # the inner shell expands it; called through part
	setsid --wait bash -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec chrt --idle 0 "$@"' leftover "$@"
}

# finish NAME... prints the logs of parts that have ended, in this sequence.
finish() {
	local name code seconds
	for name in "$@"; do
		read -r code seconds <"$logs/$name.end" || code=1 seconds=0
		printf '\n==== %s: %s after %d min %02d s\n' "$name" "$([[ $code -eq 0 ]] && echo passed || echo FAILED)" $((seconds / 60)) $((seconds % 60))
		cat "$logs/$name.log"
		[[ $code -eq 0 ]] || status=1
	done
}

make=(make --no-print-directory)
rm -f "$logs"/*.end

# Tests with time limits of their own come first and have the machine to themselves.
part test-unit "${make[@]}" test-unit
finish test-unit
part build "${make[@]}" test-programs
part test-chart "${make[@]}" test-chart
part test-kubelets "${make[@]}" test-kubelets
finish build test-chart test-kubelets

{
	part test-alerts leftover "${make[@]}" test-alerts
	part test-upstream leftover "${make[@]}" test-upstream
	part test-hooks leftover "${make[@]}" test-hooks
} &
background=$!
# The kind cluster of the fleet suite has up to nine nodes, too many next to other clusters
# on two cores: its API server stopped responding.
part test-node "${make[@]}" test-e2e STOCK_LABELS='!incident' &
node=$!
part test-controlplane "${make[@]}" test-controlplane
part test-drill "${make[@]}" test-drill
wait "$node"
finish test-node test-controlplane test-drill
part test-fleet "${make[@]}" test-fleet
finish test-fleet
wait "$background"
finish test-alerts test-upstream test-hooks
go run ./node-e2e/guard-e2e slowest --since="${SECONDS}s" || status=1
exit "$status"
