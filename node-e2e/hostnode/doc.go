// Package hostnode makes the machine that a test runs on a node of an embedded cluster,
// with the machine's own systemd, containerd and kubelet. The machine is spoilt by it: it
// is the emulated one of package vm, or a container. Tests that make a node elsewhere find
// here what its container runtime is made of, and a pod that runs on it.
package hostnode
