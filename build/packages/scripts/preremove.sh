#!/bin/sh
# Before the removal. It takes the drop-in away while its program is still there, and
# warns of what is lost with it; it does not refuse, because a package that cannot be
# removed helps nobody.
set -e

# dpkg says "remove", rpm how many versions are left; all else is an upgrade.
case ${1:-} in
remove | 0) ;;
*) exit 0 ;;
esac

/usr/sbin/kubelet-guard-unit remove ||
	echo "kubelet-guard: WARNING: remove /etc/systemd/system/kubelet.service.d/90-kubelet-guard.conf by hand; with it, and without this package, the kubelet does not start." >&2
