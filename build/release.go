package build

// Release is the version of Kubelet Guard itself. A guarded kubelet reports it
// behind the upstream version, as in v1.36.3+guard.0.1.0.
const Release = "0.1.0"

// KubeVersion is the upstream version of everything that names no other with KUBE_VERSION: what
// is built, and what the suites run from the folder of this name in _output. It is that of
// patches/v1.NN/upstream.yaml.
const KubeVersion = "v1.37.2"

// GuardedVersion returns the version string of a guarded kubelet that is built
// from the given upstream version, for example v1.36.3+guard.0.1.0.
func GuardedVersion(upstream string) string {
	return upstream + "+guard." + Release
}
