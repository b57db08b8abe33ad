package build

// Release is the version of Kubelet Guard itself. A guarded kubelet reports it
// behind the upstream version, as in v1.36.3+guard.0.1.0.
const Release = "0.1.0"

// GuardedVersion returns the version string of a guarded kubelet that is built
// from the given upstream version, for example v1.36.3+guard.0.1.0.
func GuardedVersion(upstream string) string {
	return upstream + "+guard." + Release
}
