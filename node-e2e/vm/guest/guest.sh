#!/bin/bash
# Runs in the emulated machine: the command in /results/command, one argument a line,
# in /output, a folder like _output of the machine outside. Its exit code goes to
# /results/exit-code. A command that has made /results/reset is run again after a reset
# of the machine, as after a power failure: nothing is stopped, nothing is synced.
set -euo pipefail

share() {
	mkdir -p "$2"
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}
share results /results cache=none
share programs /programs ro,cache=loose
share manifests /manifests ro,cache=loose

# Links, not the folder itself: what is mounted and overlaid has to be on a disk.
mkdir -p /output/clusters /output/e2e
for folder in /programs/*; do
	name=$(basename "$folder")
	case $name in
	clusters | e2e | cgroup2) ;; # those are the guest's own, or what it is made of
	*) ln -sfn "$folder" "/output/$name" ;;
	esac
done
ip link set lo up

printf 'Hierarchy: %s with %s\n' "$(stat -fc %T /sys/fs/cgroup)" "$(cat /sys/fs/cgroup/cgroup.controllers)"
if [[ $(stat -fc %T /sys/fs/cgroup) != cgroup2fs ]]; then
	echo 'this machine is to be on cgroup v2' >&2
	exit 1
fi

cd /output
mapfile -t command </results/command
code=0
"${command[@]}" || code=$?
if ((code == 0)) && [[ -e /results/reset ]]; then
	mv /results/reset /results/was-reset
	echo 'Resetting the machine'
	echo b >/proc/sysrq-trigger
	sleep infinity
fi
cp -r /output/e2e /results/
for logs in /output/clusters/*/logs; do
	[[ -d $logs ]] || continue # no cluster ran here
	mkdir -p "/results/logs/$(basename "$(dirname "$logs")")"
	cp -r "$logs/." "/results/logs/$(basename "$(dirname "$logs")")"
done
echo "$code" >/results/exit-code
