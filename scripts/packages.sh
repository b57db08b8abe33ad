#!/usr/bin/env bash
# Makes the deb and the rpm of guarded kubelets that are built, one pair for each
# architecture: packages.sh v1.36.3+guard.0.1.0 amd64 arm64.
#
# PACKAGES is the folder of the results. A release brings its own kubelet-guard-unit, which
# reports the release's version: KUBELET_GUARD_UNIT_AMD64, KUBELET_GUARD_UNIT_ARM64.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:?the version of the guarded kubelet, for example v1.36.3+guard.0.1.0}
upstream=${version%%+*}
shift
nfpm=_output/bin/nfpm
packages=${PACKAGES:-_output/packages}
here=$(env -u GOARCH -u GOOS go env GOARCH)

# The same bytes for the same commit, on any machine and at any time.
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
fi
export SOURCE_DATE_EPOCH

export PACKAGE_VERSION=${version#v}
# 1.36 and 1.37: the kubelet of the distribution is of the first, and not of the second.
major=${PACKAGE_VERSION%%.*}
minor=${PACKAGE_VERSION#*.}
minor=${minor%%.*}
export KUBELET_MINOR=$major.$minor KUBELET_NEXT_MINOR=$major.$((minor + 1))

# A module of its own; see build/packages/README.md.
CGO_ENABLED=0 env -u GOARCH -u GOOS go -C build/packages build -trimpath -o ../../"$nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm

mkdir -p "$packages"
rm -f "$packages"/*.deb "$packages"/*.rpm
for GOARCH in "$@"; do
	KUBELET=_output/$upstream/linux-$GOARCH/kubelet
	if [[ $GOARCH == "$here" ]]; then
		KUBELET=_output/$upstream/kubelet
	fi
	if [[ ! -x $KUBELET ]]; then
		printf '%s is not built: make kubelet GOARCH=%s\n' "$KUBELET" "$GOARCH" >&2
		exit 1
	fi
	given=KUBELET_GUARD_UNIT_${GOARCH^^}
	KUBELET_GUARD_UNIT=${!given:-}
	if [[ -z $KUBELET_GUARD_UNIT ]]; then
		KUBELET_GUARD_UNIT=_output/bin/kubelet-guard-unit-$GOARCH
		CGO_ENABLED=0 GOOS=linux GOARCH=$GOARCH go build -trimpath -buildvcs=false -ldflags='-s -w' \
			-o "$KUBELET_GUARD_UNIT" ./cmd/guard-installer/kubelet-guard-unit
	fi
	export GOARCH KUBELET KUBELET_GUARD_UNIT
	for format in deb rpm; do
		"$nfpm" package --config build/packages/nfpm.yaml --packager "$format" --target "$packages"/
	done
done
