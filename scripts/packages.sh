#!/usr/bin/env bash
# Makes the deb and the rpm of guarded kubelets that are built, one pair for each
# architecture: packages.sh v1.36.3+guard.0.1.0 amd64 arm64.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:?the version of the guarded kubelet, for example v1.36.3+guard.0.1.0}
upstream=${version%%+*}
shift
nfpm=_output/bin/nfpm
here=$(env -u GOARCH -u GOOS go env GOARCH)

# The same bytes for the same commit, whoever builds them and when.
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
fi
export SOURCE_DATE_EPOCH

export PACKAGE_VERSION=${version#v}

mkdir -p _output/packages
for GOARCH in "$@"; do
	KUBELET=_output/$upstream/linux-$GOARCH/kubelet
	if [[ $GOARCH == "$here" ]]; then
		KUBELET=_output/$upstream/kubelet
	fi
	if [[ ! -x $KUBELET ]]; then
		printf '%s is not built: make kubelet GOARCH=%s\n' "$KUBELET" "$GOARCH" >&2
		exit 1
	fi
	export GOARCH KUBELET
	for format in deb rpm; do
		"$nfpm" package --config build/packages/nfpm.yaml --packager "$format" --target _output/packages/
	done
done
