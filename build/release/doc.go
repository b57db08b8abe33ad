// Package release makes the folder of a release, and checks such a folder as a user would.
//
// One folder holds everything, without subfolders, so that it can be published as it is
// (docs/releases.md lists the files). Each kind of file has a Go file here that makes and checks
// it: packages.go, images.go, plugin.go, manifests.go, sbom.go, provenance.go, notes.go and
// checksums.go. contents.go has all names, make.go and verify.go the order.
//
// The same commit gives the same bytes: times are that of the commit, lists are sorted, and
// binaries have no path, time or host name in them. A folder is complete or not there: it is
// made under another name and then moved.
//
// Verify trusts nothing in the folder but its own consistency. Who made it is shown by the
// signature of SHA256SUMS only, see signature.go.
package release
