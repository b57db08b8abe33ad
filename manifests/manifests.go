// Package manifests holds the objects that a cluster with guarded nodes needs, for
// programs that apply them without a copy of this folder.
package manifests

import "embed"

// Files are the manifests by their path below this folder, one object or several
// in each.
//
//go:embed crds/*.yaml rbac/*.yaml
var Files embed.FS
