#!/usr/bin/env bash
# Runs shellcheck over every script. Installs it on a Debian machine when run as
# root, which is what CI machines are.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v shellcheck >/dev/null; then
	if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
		echo 'shellcheck is not installed; install the package shellcheck' >&2
		exit 1
	fi
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq shellcheck; } >/dev/null
fi

shellcheck scripts/*.sh build/packages/scripts/*.sh node-e2e/vm/guest/*.sh .ci/run
