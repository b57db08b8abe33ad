// Package rollout tests the roll-out on a node as kubeadm makes it: systemd, cgroup v2
// and systemd as cgroup driver. The node is an emulated machine of package vm, which is
// reset in the middle of a change; the control plane and the test run outside. What a
// roll-out does to several nodes is tested by package fleet.
package rollout
