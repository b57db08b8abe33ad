#!/usr/bin/env bash
# Runs make generate and fails when that changed a file. It compares the state
# before and after instead of asking git alone, so that it also works with
# uncommitted changes.
set -euo pipefail
cd "$(dirname "$0")/.."

state() {
	git ls-files -z --cached --others --exclude-standard |
		while IFS= read -r -d '' file; do
			[[ ! -f $file ]] || sha256sum "$file"
		done
}

before=$(state)
make --no-print-directory -s generate
after=$(state)
if [[ $before != "$after" ]]; then
	echo 'not up to date; make generate changed:'
	diff <(echo "$before") <(echo "$after") | awk '/^>/ { print "  " $3 }'
	exit 1
fi
