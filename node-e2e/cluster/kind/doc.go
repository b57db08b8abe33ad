// Package kind brings up clusters of several nodes with kind, without a container
// registry: it makes the node image from Debian packages and from programs that make
// builds, starts Docker Engine if none answers, and has kind do the rest. Nodes are in
// pools, and a pool runs the stock or the guarded kubelet.
//
// A cluster belongs to the output folder that it was made from; its state is in
// _output/kind/<name>, so that other processes can attach to it. Nothing here knows
// about tests.
package kind
