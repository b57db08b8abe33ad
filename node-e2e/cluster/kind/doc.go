// Package kind brings up clusters of several nodes with kind, without a container
// registry: it makes the node image from Debian packages and from programs that make
// builds, starts Docker Engine if none responds, and has kind do the rest. Nodes are in
// pools, and a pool runs the stock or the guarded kubelet.
//
// A cluster belongs to the output folder that it was made from; its state is in
// _output/kind/<name>, so that other processes can attach to it. Nothing here knows
// about tests.
//
// cluster.go brings clusters up and down, node.go has a node and its faults (a paused or
// disconnected node, another kubelet). The rest is for machines without a registry:
// engine.go runs Docker Engine, root.go makes the root file system of nodes, image.go their
// images with the images in them (debianfiles.go: kube-proxy's iptables). In folders of
// their own are programs of nodes: podnet (the pod network), runc-bounded (runc where root
// lacks capabilities) and dial-socket (a connection to a node's container runtime).
package kind
