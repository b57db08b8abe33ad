#!/usr/bin/env bash
# Checks everything that needs no test run. Runs all checks, also after one has
# failed, and ends with a line that counts them.
set -euo pipefail
cd "$(dirname "$0")/.."

# Settings for a cross build are not meant for the checks.
unset GOARCH GOOS

passed=0
failed=0

check() {
	local name=$1
	shift
	printf '== %s\n' "$name"
	if "$@"; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		printf 'FAILED: %s\n' "$name"
	fi
}

go_files() {
	find . \( -path ./_output -o -path ./.git \) -prune -o -name '*.go' -print0
}

formatted() {
	local list
	list=$(go_files | xargs -0 gofmt -l)
	if [[ -n $list ]]; then
		printf 'not formatted; run gofmt -w on:\n%s\n' "$list"
		return 1
	fi
}

modules() {
	local module
	for module in . build/third_party/coredns build/third_party/cosign build/third_party/cyclonedx-gomod build/third_party/govulncheck build/third_party/helm build/third_party/node build/packages build/third_party/promtool; do
		go -C "$module" mod verify >/dev/null || return
	done
}

check 'gofmt' formatted
check 'module sums' modules
check 'go mod tidy' go mod tidy -diff
check 'go vet' go vet ./...
check 'go vet build/third_party/coredns' go -C build/third_party/coredns vet ./...
check 'go vet build/third_party/node' go -C build/third_party/node vet ./...
check 'staticcheck' go tool staticcheck ./...
check 'shellcheck' scripts/shellcheck.sh
check 'words' scripts/words.sh
for minor in patches/v*/; do
	minor=$(basename "$minor")
	check "patches $minor" go run ./build/guard-build patches verify --kube-version="$minor"
done
check 'generated files' scripts/verify-generated.sh

printf '%d passed, %d failed\n' "$passed" "$failed"
[[ $failed -eq 0 ]]
