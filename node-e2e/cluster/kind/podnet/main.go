// Command podnet gives the pods of a kind cluster their network: it runs on every
// node, configures the runtime's CNI plugins with the node's own pod network and keeps
// a route to the pod network of every other node. It follows the Node objects: a node
// that is deleted and registers again may get another network.
//
// Traffic of pods that leaves the cluster is masqueraded by the node.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// resync is how often the routes are compared with the nodes when no Node changes: an
// interface that goes down takes its routes with it.
const resync = 10 * time.Second

// environment is what the DaemonSet passes to the program.
type environment struct {
	// Node is the name of the own node.
	Node string
	// Server is host and port of the API server, empty for that of the Service. The
	// Service works only after kube-proxy has started, which waits for nothing here.
	Server string
	// Pods is the network of all pods of the cluster.
	Pods netip.Prefix
	// Conflist is the file that the runtime reads.
	Conflist string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	klog.InitFlags(nil)
	flag.Parse()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "podnet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	env, err := readEnvironment(os.Getenv)
	if err != nil {
		return err
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	if env.Server != "" {
		config.Host = "https://" + env.Server
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := masquerade(env.Pods); err != nil {
		return fmt.Errorf("masquerading what leaves the cluster: %w", err)
	}

	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(old, new any) { notifyIf(differ(old.(*corev1.Node), new.(*corev1.Node)), notify) },
		DeleteFunc: func(any) { notify() },
	}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("listing %v: %w", kind, context.Cause(ctx))
		}
	}
	klog.InfoS("Following the nodes", "node", env.Node, "pods", env.Pods)

	ticker := time.NewTicker(resync)
	defer ticker.Stop()
	for {
		nodes := informer.Informer().GetStore().List()
		list := make([]*corev1.Node, 0, len(nodes))
		for _, n := range nodes {
			list = append(list, n.(*corev1.Node))
		}
		if err := apply(env, list); err != nil {
			klog.ErrorS(err, "Cannot follow the nodes, trying again", "after", resync)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-ticker.C:
		}
	}
}

func notifyIf(condition bool, notify func()) {
	if condition {
		notify()
	}
}

// readEnvironment reads the variables of the DaemonSet in node-e2e/cluster/kind/manifests.
func readEnvironment(get func(string) string) (environment, error) {
	env := environment{
		Node:     get("NODE_NAME"),
		Server:   get("CONTROL_PLANE_ENDPOINT"),
		Conflist: filepath.Join("/etc/cni/net.d", "10-podnet.conflist"),
	}
	if env.Node == "" {
		return environment{}, fmt.Errorf("NODE_NAME is empty: set it to the field spec.nodeName")
	}
	var err error
	if env.Pods, err = netip.ParsePrefix(get("POD_SUBNET")); err != nil {
		return environment{}, fmt.Errorf("POD_SUBNET: %w", err)
	}
	if !env.Pods.Addr().Is4() {
		return environment{}, fmt.Errorf("POD_SUBNET: %s is not an IPv4 network; create the cluster with ipFamily ipv4", env.Pods)
	}
	return env, nil
}
