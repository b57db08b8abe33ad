// Package controlplane holds the suite of the companion control plane: its specs
// are the package's test files; compiled with "go test -c" they form the
// controlplane-e2e.test program.
//
// What every spec relies on:
//
//   - The cluster is the embedded one, with the real API server, controller manager
//     and a guarded kubelet, and the control plane is installed in it by kubectl
//     apply -k of the real manifests: two replicas of the webhook, as pods.
//   - Requests are made by users: an ordinary user with every right but override,
//     a user with that right as well, a node, a controller. The administrator
//     prepares and cleans up.
//   - A spec has a namespace of its own and brings what it changes in the cluster
//     (the mode, the number of webhook replicas) back, also when it fails.
package controlplane
