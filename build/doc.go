// Package build makes the guarded kubelet: it takes the published Kubernetes
// module, the patch series and the guard package to prepared source trees, and
// those to binaries.
//
// It keeps four promises:
//
//   - The source is what the repository pins. The archive and the extracted
//     files are compared with patches/v1.NN/upstream.yaml whenever a tree is
//     made, and a difference stops the build.
//   - A tree that has a stamp is complete. The stamp is removed before the first
//     change and written after the last one, so that a killed run costs a rebuild
//     and never a kubelet with half of its hooks.
//   - Patches apply exactly. There is no fuzz, and a patch that is exported again
//     has the same bytes.
//   - Same input, same bytes. Binaries carry no time, no path and no host name.
//
// Binaries are built with CGO_ENABLED=0, although upstream's own kubelet is not.
// A static binary is reproducible without pinning a C compiler and its headers,
// cross-builds with nothing but Go, and runs on any distribution. The price is
// Go's own resolver instead of glibc's: name service modules other than files and
// DNS (nsswitch.conf) are not consulted.
package build
