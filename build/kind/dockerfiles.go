// Package kind holds what node images of kind clusters are built with.
package kind

import _ "embed"

// Dockerfile makes a node image with the guarded kubelet from one with the stock
// kubelet. It is also what users build their own images with.
//
//go:embed Dockerfile
var Dockerfile []byte

// NodeDockerfile makes a node image from a root file system.
//
//go:embed node.Dockerfile
var NodeDockerfile []byte
