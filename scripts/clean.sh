#!/usr/bin/env bash
# Removes _output. A cluster that runs in it has mounts there: removing files
# through them would reach into its containers.
set -euo pipefail
cd "$(dirname "$0")/.."

if mounts=$(grep -F " $PWD/_output/" /proc/self/mountinfo); then
	printf 'a cluster runs in _output (go run ./cmd/guard-node list; guard-node down):\n%s\n' "$mounts" >&2
	exit 1
fi
rm -rf _output
