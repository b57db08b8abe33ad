package factory

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const kubeadmManifest = `apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver, namespace: kube-system}
spec:
  containers:
  - name: kube-apiserver
    command:
    - kube-apiserver
    - --advertise-address=192.0.2.1
    - --etcd-servers=https://127.0.0.1:2379,https://192.0.2.2:2379
    - --etcd-cafile=/etc/kubernetes/pki/etcd/ca.crt
    - --etcd-certfile=/etc/kubernetes/pki/apiserver-etcd-client.crt
    - --etcd-keyfile=/etc/kubernetes/pki/apiserver-etcd-client.key
    - --etcd-compaction-interval=0
    - --kubelet-client-certificate=/etc/kubernetes/pki/apiserver-kubelet-client.crt
    - --kubelet-client-key=/etc/kubernetes/pki/apiserver-kubelet-client.key
    args:
    - --encryption-provider-config=/enc/config.yaml
    - --secure-port=6443
    volumeMounts:
    - {name: certs, mountPath: /etc/kubernetes/pki}
    - {name: all, mountPath: /etc/kubernetes}
    - {name: encryption, mountPath: /enc}
  volumes:
  - {name: certs, hostPath: {path: /etc/kubernetes/pki}}
  - {name: all, hostPath: {path: /elsewhere}}
  - {name: encryption, hostPath: {path: /var/lib/encryption}}
`

func TestReadManifest(t *testing.T) {
	t.Parallel()
	s, err := readManifest([]byte(kubeadmManifest))
	require.NoError(t, err)
	require.Equal(t, settings{
		servers: []string{"https://127.0.0.1:2379", "https://192.0.2.2:2379"}, prefix: "/registry",
		caFile: "/etc/kubernetes/pki/etcd/ca.crt", certFile: "/etc/kubernetes/pki/apiserver-etcd-client.crt", keyFile: "/etc/kubernetes/pki/apiserver-etcd-client.key",
		encryptionConfig: "/var/lib/encryption/config.yaml", compactionInterval: time.Duration(0),
		kubeletCertFile: "/etc/kubernetes/pki/apiserver-kubelet-client.crt", kubeletKeyFile: "/etc/kubernetes/pki/apiserver-kubelet-client.key",
	}, s)
	for content, words := range map[string]string{
		"text":                              "couldn't get version/kind",
		"apiVersion: v1\nkind: ConfigMap\n": "not a Pod",
		"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, command: [sleep]}]}":          "no container runs kube-apiserver",
		"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, command: [kube-apiserver]}]}": "no --etcd-servers",
	} {
		_, err := readManifest([]byte(content))
		require.ErrorContains(t, err, words)
	}
}

func TestReadEtcdManifest(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "etcd.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`apiVersion: v1
kind: Pod
metadata: {name: etcd, namespace: kube-system}
spec:
  containers:
  - name: etcd
    command: [etcd, --listen-metrics-urls=http://127.0.0.1:2381, --key-file=/pki/server.key, --data-dir=/var/lib/etcd, --client-cert-auth=true]
    volumeMounts:
    - {name: certs, mountPath: /pki}
  volumes:
  - {name: certs, hostPath: {path: /etc/kubernetes/pki/etcd}}
`), 0o600))
	e, err := ReadEtcdManifest(path)
	require.NoError(t, err)
	require.Equal(t, Etcd{MetricsURLs: []string{"http://127.0.0.1:2381"}, SecretFiles: []string{"/etc/kubernetes/pki/etcd/server.key", "/var/lib/etcd"}}, e)
	require.NoError(t, os.WriteFile(path, []byte(kubeadmManifest), 0o600))
	_, err = ReadEtcdManifest(path)
	require.ErrorContains(t, err, "no container runs etcd")
	_, err = ReadEtcdManifest(filepath.Join(t.TempDir(), "absent"))
	require.ErrorContains(t, err, "--etcd-manifest")
}
