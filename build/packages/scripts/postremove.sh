#!/bin/sh
# After the removal: systemd hears that the drop-in is gone. The kubelet that runs is
# still the guarded one, because nothing here restarts it.
set -e

case ${1:-} in
remove | purge | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ] && ! systemctl daemon-reload; then
	echo "kubelet-guard: WARNING: systemd refused to read its units again (is /run full?). Run systemctl daemon-reload before the kubelet is restarted; until then systemd looks for the kubelet that was removed." >&2
fi
# A purge follows the removal and has nothing to add.
if [ "${1:-}" != purge ]; then
	echo "kubelet-guard: is removed. The guarded kubelet runs on until kubelet.service is restarted (systemctl restart kubelet); then the node runs its stock kubelet, and protected pods are no longer protected. The state directory of the guard, the folder guard in the kubelet's root directory, is left for a return; delete it once the stock kubelet runs."
fi
