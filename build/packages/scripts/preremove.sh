#!/bin/sh
# Before the removal. It warns of what is lost with it; it does not refuse, because a
# package that cannot be removed helps nobody.
set -e

# dpkg says "remove", rpm how many versions are left; all else is an upgrade.
case ${1:-} in
remove | 0) ;;
*) exit 0 ;;
esac

# The default state directory; one file per protected pod on this node.
state=/var/lib/kubelet/guard
own=$(sed -n 's/^stateDir: *"\{0,1\}\(\/[^"]*\)"\{0,1\} *$/\1/p' /etc/kubernetes/kubelet-guard.yaml 2>/dev/null) || own=
count=$(find "${own:-$state}/pods" -name '*.pod' 2>/dev/null | wc -l)
if [ "$count" -gt 0 ]; then
	echo "kubelet-guard: WARNING: this node has $count protected pods. Those among them that are held now (kubectl guard holds) are stopped by the stock kubelet as soon as kubelet.service is restarted, or this machine." >&2
fi
