#!/bin/sh
# After the removal: the drop-in is gone, and systemd is told. The kubelet that runs
# is still the guarded one, because nothing here restarts it.
set -e

case ${1:-} in
remove | purge | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
# A purge follows the removal and has nothing to add.
if [ "${1:-}" != purge ]; then
	echo "kubelet-guard: is removed. The guarded kubelet runs on until kubelet.service is restarted (systemctl restart kubelet); then the node runs its stock kubelet, and protected pods are no longer protected. The state in /var/lib/kubelet/guard is left for a return; delete it once the stock kubelet runs."
fi
