package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/hostnode"
	"kubelet-guard.io/node-e2e/images"
	"kubelet-guard.io/node-e2e/vm"
	"kubelet-guard.io/pkg/rollout"
)

const nodeName = "machine"

// Files as kubeadm and its packages write them, as far as a node without a pod network
// and a registry has them. The credentials come without a bootstrap.
const (
	kubeletUnit = `[Unit]
Description=Node agent of Kubernetes
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
`
	kubeadmDropIn = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`
	kubeadmFlags  = "KUBELET_KUBEADM_ARGS=\"--hostname-override=" + nodeName + " --node-ip=%s\"\n"
	kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
healthzBindAddress: 127.0.0.1
healthzPort: 10248
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
tlsCertFile: /var/lib/kubelet/pki/serving.crt
tlsPrivateKeyFile: /var/lib/kubelet/pki/serving.key
staticPodPath: /etc/kubernetes/manifests
evictionHard: {memory.available: 1Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
failSwapOn: false
resolvConf: ""
# The machine's clock is several times slower than that of the controllers, which wait for 40
# seconds of theirs.
nodeLeaseDurationSeconds: 8
nodeStatusUpdateFrequency: 2s
`
	// networkUnit gives the machine its address, and that of the service of the API server.
	networkUnit = `[Unit]
Before=kubelet.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=/bin/sh -c 'until ls -d /sys/class/net/e*; do sleep 0.2; done; udevadm settle'
ExecStart=/bin/sh -c 'ip link set lo up; ip address add %s/32 dev lo; for device in /sys/class/net/e*; do ip link set $${device##*/} up; ip address add %s/24 dev $${device##*/}; done; ip route add default via %s'
[Install]
WantedBy=multi-user.target
`
	// Requests of pods to the address of the service go to the API server. There is no
	// service proxy.
	serviceSocket = `[Socket]
ListenStream=%s
FreeBind=yes
[Install]
WantedBy=sockets.target
`
	serviceUnit = `[Service]
ExecStart=/lib/systemd/systemd-socket-proxyd %s
`
)

// setUpNode makes the guest a node of the cluster with the stock kubelet.
func setUpNode(ctx context.Context, cluster *embedded.Cluster, guest *vm.Guest) error {
	credentials, err := cluster.Join(nodeName, cluster.MachineIP())
	if err != nil {
		return err
	}
	service, _, err := net.SplitHostPort(embedded.ServiceAddress())
	if err != nil {
		return err
	}
	files := map[string]string{
		"/usr/lib/systemd/system/kubelet.service":                   kubeletUnit,
		"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": kubeadmDropIn,
		"/var/lib/kubelet/kubeadm-flags.env":                        fmt.Sprintf(kubeadmFlags, cluster.MachineIP()),
		"/var/lib/kubelet/config.yaml":                              kubeletConfig,
		"/etc/systemd/system/network.service":                       fmt.Sprintf(networkUnit, service, cluster.MachineIP(), cluster.NodeIP()),
		"/etc/systemd/system/kubernetes-service.socket":             fmt.Sprintf(serviceSocket, embedded.ServiceAddress()),
		"/etc/systemd/system/kubernetes-service.service":            fmt.Sprintf(serviceUnit, cluster.APIServerAddress()),
	}
	maps.Copy(files, hostnode.RuntimeFiles(true))
	for from, to := range map[string]string{
		credentials.Kubeconfig:  "/etc/kubernetes/kubelet.conf",
		credentials.Authority:   "/etc/kubernetes/pki/ca.crt",
		credentials.Certificate: "/var/lib/kubelet/pki/serving.crt",
		credentials.Key:         "/var/lib/kubelet/pki/serving.key",
	} {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		files[to] = string(content)
	}
	tree := filepath.Join(guest.Share(), "tree")
	for path, content := range files {
		path = filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	programs := "/output/node/bin/" + strings.Join(hostnode.RuntimePrograms, " /output/node/bin/")
	_, err = guest.Exec(ctx, `set -e
cp -r --no-preserve=ownership /results/tree/. /
chmod 600 /var/lib/kubelet/pki/serving.key /etc/kubernetes/kubelet.conf
install `+programs+` `+hostnode.RuntimeDir+`
install /output/bin/kubelet-stock /usr/bin/kubelet
systemctl daemon-reload
systemctl enable --quiet --now network kubernetes-service.socket containerd
systemctl enable --quiet kubelet
until `+hostnode.RuntimeDir+`/ctr version; do sleep 1; done`)
	return err
}

// newMachine starts the control plane and the machine, which has the images, but no kubelet
// that runs.
func newMachine(t *testing.T, output, manifests string) *rolloutTest {
	c := &rolloutTest{t: t}
	ctx := t.Context()
	var err error
	c.cluster, err = embedded.Start(ctx, embedded.Config{
		Name:    "rollout",
		Dir:     filepath.Join(output, "clusters", "rollout"),
		KubeDir: filepath.Join(output, framework.KubeVersion),
		NodeDir: filepath.Join(output, "node", "bin"),
		Kubelet: filepath.Join(output, "bin", "kubelet"),
		Log:     t.Output(),
	})
	require.NoError(t, err, "starting the control plane")
	t.Cleanup(func() {
		if err := c.cluster.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Errorf("stopping the control plane: %v", err)
		}
	})
	// The cluster's own node is not needed.
	require.NoError(t, errors.Join(c.cluster.Kubelet().Stop(ctx), c.cluster.Containerd().Stop(ctx)))
	c.client, err = kubernetes.NewForConfig(c.cluster.RESTConfig())
	require.NoError(t, err)
	c.kubectl = framework.Kubectl{
		Program:    filepath.Join(output, framework.KubeVersion, "kubectl"),
		Kubeconfig: c.cluster.Kubeconfig(),
		PluginDir:  filepath.Join(output, "bin"),
	}

	// The machine ends when the test does, however it ends, but before the cluster.
	booted, end := context.WithCancel(context.WithoutCancel(ctx))
	t.Cleanup(end)
	c.guest, err = vm.Boot(booted, vm.Config{OutputDir: output, ManifestDir: manifests, Bridge: c.cluster.Bridge(), Log: t.Output()})
	require.NoError(t, err, "starting the emulated machine")
	t.Cleanup(func() {
		stopping, cancel := context.WithTimeout(booted, stopTime)
		defer cancel()
		if t.Failed() {
			journal, err := c.guest.Exec(stopping, "journalctl --no-pager --lines=200 --output=short-monotonic")
			t.Logf("journal of the machine (%v):\n%s", err, journal)
		}
		if err := c.guest.Stop(stopping); err != nil {
			t.Errorf("stopping the emulated machine: %v", err)
		}
	})
	c.logf("The machine has booted")
	require.NoError(t, setUpNode(ctx, c.cluster, c.guest))
	c.logf("The machine is set up")
	c.loadImages(output, filepath.Join(c.cluster.LogDir(), "..", "images.tar"))
	c.logf("The images are loaded")
	return c
}

// loadImages loads the images of the pods, and one of the installer for each kubelet.
func (c *rolloutTest) loadImages(output, ofPods string) {
	c.t.Helper()
	installer := func(name, kubelet string) images.Image {
		return images.Image{
			Name: name, Entrypoint: []string{rollout.InstallerPath},
			Files: []images.File{
				{Path: rollout.InstallerPath, Source: filepath.Join(output, "bin", "guard-installer")},
				{Path: rollout.KubeletPath, Source: filepath.Join(output, kubelet)},
			},
		}
	}
	require.NoError(c.t, images.WriteFile(filepath.Join(c.guest.Share(), "images.tar"),
		installer(imageGood, "bin/kubelet"),
		installer(imageNotStarting, "failing/"+build.NotStarting),
		installer(imageUnguarded, "failing/"+build.Unguarded)))
	pods, err := os.ReadFile(ofPods)
	require.NoError(c.t, err)
	require.NoError(c.t, os.WriteFile(filepath.Join(c.guest.Share(), "pods.tar"), pods, 0o644))
	c.exec("for archive in pods images; do " + hostnode.RuntimeDir + "/ctr --namespace=k8s.io images import /results/$archive.tar || exit; done")
}

// logf prints a line at once: the log of a part of a test comes with its end.
func (c *rolloutTest) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
