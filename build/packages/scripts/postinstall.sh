#!/bin/sh
# After the installation or an upgrade, of the deb and of the rpm. It never restarts
# the kubelet: when a node changes kubelets is the administrator's to say.
set -e

# dpkg also calls this to undo a removal that failed (abort-*): the same applies.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi

guarded=$(/usr/bin/kubelet-guarded --version 2>/dev/null | sed 's/^Kubernetes v//') || guarded=
stock=$(kubelet --version 2>/dev/null | sed 's/^Kubernetes v//') || stock=
minor() { printf '%s\n' "$1" | cut -d. -f1,2; }

if [ -n "$guarded" ] && [ -n "$stock" ] && [ "$(minor "$guarded")" != "$(minor "$stock")" ]; then
	echo "kubelet-guard: WARNING: the kubelet of this node is $stock, this package's is $guarded: another minor version. Install the package for $(minor "$stock") before kubelet.service is restarted, unless this is an upgrade of the node." >&2
fi
if ! grep -qs KUBELET_CONFIG_ARGS= /etc/systemd/system/kubelet.service /etc/systemd/system/kubelet.service.d/*.conf \
	/usr/lib/systemd/system/kubelet.service /usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf \
	/lib/systemd/system/kubelet.service.d/10-kubeadm.conf; then
	echo "kubelet-guard: WARNING: no unit of kubeadm is here yet. Without one the kubelet will not start; see /usr/share/doc/kubelet-guard/packages.md" >&2
fi
echo "kubelet-guard: takes effect at the next start of the kubelet (systemctl restart kubelet; containers keep running). The mode is in /etc/kubernetes/kubelet-guard.yaml."
