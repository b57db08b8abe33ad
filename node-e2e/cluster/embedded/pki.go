package embedded

import (
	"fmt"
	"net"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"kubelet-guard.io/node-e2e/cluster/pki"
)

// createPKI makes the three authorities of a cluster, every certificate of the
// control plane, and the key pair for service account tokens.
func createPKI(d pki.Dir, ip net.IP) error {
	loopback := net.IPv4(127, 0, 0, 1)
	signed := map[string][]pki.Request{
		"ca": {
			{Name: "apiserver", CommonName: "kube-apiserver", Server: true,
				Hosts:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
				Addresses: []net.IP{ip, loopback, firstServiceIP}},
			// A member of system:masters needs no binding. A binding would be lost
			// with an emptied store, and with it the way to a kubelet's metrics.
			{Name: "apiserver-kubelet-client", CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}, Client: true},
			{Name: "admin", CommonName: "kubernetes-admin", Organizations: []string{"system:masters"}, Client: true},
			{Name: "controller-manager", CommonName: "system:kube-controller-manager", Client: true},
			{Name: "scheduler", CommonName: "system:kube-scheduler", Client: true},
			{Name: "controller-manager-serving", CommonName: "kube-controller-manager", Server: true, Addresses: []net.IP{ip}},
			{Name: "scheduler-serving", CommonName: "kube-scheduler", Server: true, Addresses: []net.IP{ip}},
		},
		"front-proxy-ca": {
			{Name: "front-proxy-client", CommonName: "front-proxy-client", Client: true},
		},
		"etcd/ca": {
			{Name: "etcd/server", CommonName: "etcd", Server: true, Client: true, Addresses: []net.IP{ip, loopback}},
			{Name: "etcd/peer", CommonName: "etcd", Server: true, Client: true, Addresses: []net.IP{ip, loopback}},
			{Name: "apiserver-etcd-client", CommonName: "kube-apiserver-etcd-client", Client: true},
		},
	}
	for name, requests := range signed {
		a, err := d.NewAuthority(name)
		if err != nil {
			return fmt.Errorf("making the certificate authority %s: %w", name, err)
		}
		for _, request := range requests {
			if err := a.Sign(request); err != nil {
				return err
			}
		}
	}
	_, err := d.NewKey("sa")
	return err
}

// createNodeCertificates makes what a node of the given name needs: a client
// certificate that the Node authorizer recognizes, and a serving certificate.
func createNodeCertificates(d pki.Dir, nodeName string, ip net.IP) error {
	a, err := d.LoadAuthority("ca")
	if err != nil {
		return err
	}
	identity := "system:node:" + nodeName
	if err := a.Sign(pki.Request{
		Name: nodeClientCertificate(nodeName), CommonName: identity, Organizations: []string{"system:nodes"}, Client: true,
	}); err != nil {
		return err
	}
	return a.Sign(pki.Request{
		Name: nodeServingCertificate(nodeName), CommonName: identity, Organizations: []string{"system:nodes"}, Server: true,
		Hosts: []string{nodeName}, Addresses: []net.IP{ip},
	})
}

func nodeClientCertificate(nodeName string) string  { return "kubelet-client-" + nodeName }
func nodeServingCertificate(nodeName string) string { return "kubelet-serving-" + nodeName }

// writeKubeconfig writes a kubeconfig whose credentials are inside, so that the
// file alone can be copied elsewhere.
func writeKubeconfig(path string, d pki.Dir, server, user, certificate string) error {
	authority, err := os.ReadFile(d.Cert("ca"))
	if err != nil {
		return err
	}
	clientCertificate, err := os.ReadFile(d.Cert(certificate))
	if err != nil {
		return err
	}
	clientKey, err := os.ReadFile(d.Key(certificate))
	if err != nil {
		return err
	}
	const name = "kubelet-guard"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: authority}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: clientCertificate, ClientKeyData: clientKey}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, path)
}
