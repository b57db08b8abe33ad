#!/bin/bash
# agent FOLDER runs in the emulated machine: the scripts that the machine outside puts into
# the folder, each of which may take its time. A script is NAME.sh, its output NAME.out and
# its exit code, which comes last, NAME.code.
set -euo pipefail
cd "$1"

cat /proc/sys/kernel/random/boot_id >boot
while [[ ! -e end ]]; do
	for script in *.sh; do
		[[ -e $script ]] || continue
		name=${script%.sh}
		mv "$script" "$name.running"
		(
			code=0
			bash "$name.running" >"$name.out" 2>&1 </dev/null || code=$?
			echo "$code" >"$name.code.new"
			mv "$name.code.new" "$name.code"
		) &
	done
	sleep 0.2
done
rm end
