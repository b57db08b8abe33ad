// Package version names the build that a program of Kubelet Guard is of. The kubelet has
// Kubernetes' own means instead: it reports v1.36.3+guard.0.1.0.
package version

import (
	"cmp"
	"runtime/debug"
)

// Variable is the variable that the linker sets in a release: -X Variable=value.
const Variable = "kubelet-guard.io/pkg/version.release"

// release is the result of Release; empty in other builds.
var release string

// Release returns how a program of a release names itself: version and commit.
func Release(version, commit string) string { return version + ", commit " + commit }

// String returns the version that a program reports: version and commit of a release, else the
// version of the module, else the commit of a build from source; then the version of Go.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(release, "unknown")
	}
	return cmp.Or(release, fromSource(info)) + ", " + info.GoVersion
}

func fromSource(info *debug.BuildInfo) string {
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	version := cmp.Or(info.Main.Version, "unknown")
	if commit := settings["vcs.revision"]; commit != "" && version == "(devel)" {
		version = "commit " + commit[:min(12, len(commit))]
		if settings["vcs.modified"] == "true" {
			version += ", modified"
		}
	}
	return version
}
