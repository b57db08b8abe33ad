package node

import (
	"context"
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework/criproxy"
)

// newRuntimeProxy puts a proxy before the node's container runtime, for kubelets that
// are started with throughProxy. It ends with the spec. Call it before anything that
// restarts the kubelet, so that the normal kubelet is back before the proxy goes.
//
// The socket is a file of this machine that the nodes of a kind cluster do not see: the
// spec needs the label control-plane, as the others do that the kind provider cannot run.
func newRuntimeProxy(ctx context.Context) *criproxy.Proxy {
	GinkgoHelper()
	// Not GinkgoT().TempDir: the path of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "criproxy-")
	Expect(err).NotTo(HaveOccurred(), "make the folder of the proxy's socket")
	DeferCleanup(os.RemoveAll, dir)
	proxy, err := criproxy.Start(ctx, filepath.Join(dir, "cri.sock"), provider.Node().RuntimeSocket())
	Expect(err).NotTo(HaveOccurred(), "start the proxy of the container runtime")
	DeferCleanup(proxy.Close)
	return proxy
}

// throughProxy adds to a change of the kubelet that it reaches the container runtime
// through the proxy only.
func throughProxy(proxy *criproxy.Proxy, change testnode.KubeletChange) testnode.KubeletChange {
	inner := change.Configure
	change.Configure = func(config *kubeletconfig.KubeletConfiguration) {
		if inner != nil {
			inner(config)
		}
		config.ContainerRuntimeEndpoint = proxy.Endpoint()
	}
	return change
}
