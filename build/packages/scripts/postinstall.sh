#!/bin/sh
# After the installation or an upgrade, of the deb and of the rpm. It never restarts
# the kubelet: when a node changes kubelets is the administrator's to say.
set -e

# dpkg says "configure", rpm how many versions there are. dpkg also calls this to undo a
# removal or an upgrade that failed (abort-*); then nothing may fail here.
case ${1:-} in
configure | [0-9]*) refused=1 ;;
*) refused=0 ;;
esac

# The drop-in has the command of kubelet.service as it is now. Where that is not
# understood, or its restart would stop containers, the lines are named and the node
# stays as it is.
/usr/sbin/kubelet-guard-unit apply && refused=0

if [ -d /run/systemd/system ] && ! systemctl daemon-reload; then
	# An error here would leave dpkg with a package that is not configured.
	echo "kubelet-guard: WARNING: systemd refused to read its units again (is /run full?). Run systemctl daemon-reload before the kubelet is restarted; until then systemd starts the previous kubelet." >&2
fi
[ "$refused" = 0 ] || exit 1

guarded=$(/usr/bin/kubelet-guarded --version 2>/dev/null | sed 's/^Kubernetes v//') || guarded=
stock=$(kubelet --version 2>/dev/null | sed 's/^Kubernetes v//') || stock=
minor() { printf '%s\n' "$1" | cut -d. -f1,2; }

if [ -n "$guarded" ] && [ -n "$stock" ] && [ "$(minor "$guarded")" != "$(minor "$stock")" ]; then
	echo "kubelet-guard: WARNING: the kubelet of this node is $stock, this package's is $guarded: another minor version. Install the package for $(minor "$stock") before kubelet.service is restarted, unless this is an upgrade of the node." >&2
fi
echo "kubelet-guard: takes effect at the next start of the kubelet (systemctl restart kubelet; containers keep running), also one after a crash of the kubelet or a reboot. The mode is in /etc/kubernetes/kubelet-guard.yaml."
