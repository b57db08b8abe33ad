package packages

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"runtime"
	"testing"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/hostnode"
)

// nodeName is the node of the machine's own kubelet.service.
const nodeName = "packages"

// Units and configurations of a node as kubeadm makes it. The variables of the
// kubelet's drop-in are kubeadm's; the credentials are an administrator's, so that
// the test needs no certificates of its own.
const (
	kubeletUnit = `[Unit]
Description=kubelet under test
[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=1
KillMode=process
`
	kubeadmDropIn = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=%s"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
Environment="KUBELET_KUBEADM_ARGS=--hostname-override=` + nodeName + `"
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`
	// An administrator's command, with another root directory. A kubelet without it would
	// find no pods there and stop those that run.
	localUnit = `[Service]
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS \
  $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS --root-dir=` + rootDir + `
`
	rootDir     = "/data/kubelet"
	localDropIn = "/etc/systemd/system/kubelet.service.d/20-local.conf"
	stopDropIn  = "/etc/systemd/system/kubelet.service.d/50-stop.conf"
	// The addresses are the loopback's: the embedded node has those of its bridge.
	kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
healthzBindAddress: 127.0.0.1
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
evictionHard: {memory.available: 1Mi, nodefs.available: 1%, imagefs.available: 1%}
resolvConf: ""
`
)

// machine is this machine as a node.
type machine struct {
	*hostnode.Node
	t *testing.T
}

func newMachine(t *testing.T, output string) machine {
	return machine{hostnode.Start(t, hostnode.Config{
		Name: "packages", NodeName: nodeName, Output: output,
		Files: func(cluster *embedded.Cluster) (map[string]string, error) {
			return map[string]string{
				"/etc/systemd/system/kubelet.service":                   kubeletUnit,
				"/etc/systemd/system/kubelet.service.d/10-kubeadm.conf": fmt.Sprintf(kubeadmDropIn, cluster.Kubeconfig()),
				localDropIn:                    localUnit,
				"/var/lib/kubelet/config.yaml": kubeletConfig,
			}, nil
		},
	}), t}
}

// debArch and rpmArch are this machine's architecture as the package formats call it.
func debArch() string { return runtime.GOARCH }

func rpmArch() string {
	return map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
}

// insecureTransport is for the loopback, where the kubelet's certificate is one that
// it has signed itself.
func insecureTransport() http.RoundTripper {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
}
