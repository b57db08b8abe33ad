// Package embedded runs a whole one-node Kubernetes cluster out of program
// files: etcd, the control plane, containerd, runc, CNI and a kubelet given by
// path. It is what the node suite proves the guard on, so what it starts is a
// real node: certificates, Node and RBAC authorization, NodeRestriction, a
// kubelet that authenticates its callers through the API, and pods with their
// own addresses.
//
// Invariants:
//
//   - One cluster owns one index from 0 to 255, claimed by creating the bridge
//     kg-<index>. The pod network 10.88.<index>.0/24, the node address
//     10.88.<index>.1 on which every server listens, and the cgroup
//     /kg-<index> follow from it, so clusters side by side share nothing.
//   - containerd and the kubelet live in a mount namespace of their own, where
//     the node's usual folders (/var/lib/kubelet, /run/containerd and so on)
//     are folders of the cluster. No mount of the node is visible outside, and
//     all of them end with the last process of the namespace.
//   - Everything of a cluster is marked as its own from the moment it exists:
//     processes by an environment variable that their children inherit,
//     containers by the cgroup, the bridge by its hardware address. What a
//     crashed run left can be found and removed without guessing, and nothing
//     else is ever touched.
//   - Nothing outside of Config.Dir, the bridge, its ports and the cgroup is
//     written, with one exception: the node's usual folders must exist as mount
//     points, and are made, empty, where they do not.
//
// cluster.go starts and stops a cluster, component.go and process.go one of its processes;
// controlplane.go, etcd.go, runtime.go and kubelet.go say how each is started. link.go has
// connections that can be cut, and the second API server behind one. cleanup.go removes
// what a run left; mountns.go, cgroup.go, network.go and pki.go have what keeps clusters
// apart. runc-unfiltered is the runtime's runc.
package embedded
