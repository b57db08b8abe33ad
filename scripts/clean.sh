#!/usr/bin/env bash
# Removes _output. A cluster that runs in it has mounts there: removing files
# through them would reach into its containers. A kind cluster outlives its folder.
set -euo pipefail
cd "$(dirname "$0")/.."

if clusters=$(compgen -G '_output/kind/*/cluster.json'); then
	printf 'a kind cluster belongs to _output (go run ./node-e2e/guard-e2e kind down --name=NAME):\n%s\n' "$clusters" >&2
	exit 1
fi
if mounts=$(grep -F " $PWD/_output/" /proc/self/mountinfo); then
	printf 'a cluster runs in _output (go run ./node-e2e/guard-e2e list; guard-e2e down):\n%s\n' "$mounts" >&2
	exit 1
fi
rm -rf _output
