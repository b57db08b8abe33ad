package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"kubelet-guard.io/cmd/kubectl-guard/internal/image"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
)

// resolve names the image of a pool by the digest that its nodes have pulled, by node. Every
// node that is to be changed must have the same.
func (p *poolPlan) resolve(digests map[string]string, allowTag bool) error {
	if image.HasDigest(p.request.Image) {
		return nil
	}
	found := map[string]string{} // an example of a node by digest
	for _, node := range p.found.Named(pool.StepDone) {
		found[digests[node]] = node
	}
	example, without := found[""]
	switch {
	case len(found) == 0:
		return nil
	case len(found) > 1 && !without:
		return fmt.Errorf("pool %s: %s is %s: its tag was moved, or the container runtimes name an image of several architectures in different ways. Name the image by its digest: --image REPOSITORY@sha256:…",
			p.Name, p.request.Image, inWords(found))
	case without && !allowTag:
		return fmt.Errorf("pool %s: node %s does not report which digest %s has (was it loaded by hand?), and a tag can be moved to another image before the next node pulls it. Name the image by its digest, --image REPOSITORY@sha256:…, or give --allow-tag", p.Name, example, p.request.Image)
	case without:
		return nil
	}
	digest := slices.Collect(maps.Keys(found))[0]
	p.request.ImageName, p.request.Image = p.request.Image, image.Name(p.request.Image)+"@"+digest
	return nil
}

// inWords is "sha256:0123 on node a and sha256:4567 on node b".
func inWords(found map[string]string) string {
	var parts []string
	for _, digest := range slices.Sorted(maps.Keys(found)) {
		parts = append(parts, fmt.Sprintf("%.19s on node %s", digest, found[digest]))
	}
	return strings.Join(parts[:min(len(parts), 3)], " and ")
}

// checkChecksums compares the kubelets that nodes were offered with the checksums that the
// operator has given, by architecture.
func (p *poolPlan) checkChecksums(given map[string]string) error {
	if len(given) == 0 {
		return nil
	}
	for _, node := range p.found.Nodes {
		if node.Report == nil || node.Report.RequestID != p.inspection.ID() || node.Report.Offered.SHA256 == "" {
			continue
		}
		is, arch := node.Report.Offered.SHA256, node.Report.Architecture
		switch want := given[arch]; {
		case want == "":
			return fmt.Errorf("pool %s: node %s is of the architecture %s, for which no --kubelet-checksum is given; nothing was changed", p.Name, node.Node, arch)
		case want != is:
			return fmt.Errorf("pool %s: the kubelet of image %s has the checksum %s for %s, not %s as in --kubelet-checksum: it is another build. Nothing was changed", p.Name, p.request.Image, is, arch, want)
		}
	}
	return nil
}

// parseChecksums reads ARCHITECTURE=SHA256.
func parseChecksums(arguments []string) (map[string]string, error) {
	sums := map[string]string{}
	for _, argument := range arguments {
		arch, sum, found := strings.Cut(argument, "=")
		sum = strings.ToLower(strings.TrimPrefix(sum, "sha256:"))
		if !found || arch == "" || len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "" {
			return nil, fmt.Errorf("--kubelet-checksum: %q is not ARCHITECTURE=SHA256, such as amd64=0123… with 64 hexadecimal digits", argument)
		}
		if other := sums[arch]; other != "" && other != sum {
			return nil, fmt.Errorf("--kubelet-checksum: two different ones for %s", arch)
		}
		sums[arch] = sum
	}
	return sums, nil
}
