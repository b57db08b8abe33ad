package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"path/filepath"

	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/node-e2e/node"
)

// nodePart is a run of the node suite on a cluster of its own: for one kubelet, the
// specs that a label filter selects.
type nodePart struct {
	kubelet node.Variant
	// name is that of the folder in <output>/e2e, and of the cluster unless the user
	// names one.
	name   string
	labels string
}

// whole is a part for each of the kubelets.
func whole(labels string, kubelets ...node.Variant) []nodePart {
	var parts []nodePart
	for _, kubelet := range kubelets {
		parts = append(parts, nodePart{kubelet: kubelet, name: string(kubelet), labels: labels})
	}
	return parts
}

// nodePartsAtOnce is how many parts run side by side. With a third cluster two processors
// are busy all the time, and the suite takes longer, not shorter.
const nodePartsAtOnce = 2

// runNode runs parts of the node suite, with further arguments for the suite. Progress goes
// to w.
func (o *options) runNode(ctx context.Context, w io.Writer, parts []nodePart, arguments ...string) []outcome {
	var runs []suiteRun
	for _, part := range parts {
		cluster := cmp.Or(o.cluster, part.name)
		runs = append(runs, suiteRun{
			name: part.name, program: "node-e2e.test", test: "TestNode", target: "make node-e2e",
			files:  filepath.Join(o.outputDir, "e2e", part.name, "suite"),
			labels: part.labels,
			arguments: append([]string{
				"-provider=" + o.provider,
				"-kubelet=" + string(part.kubelet),
				"-cluster=" + cluster,
				"-artifacts=" + part.name,
				"-attached",
				"-ginkgo.v",
			}, arguments...),
			cleanUp: func(ctx context.Context) error {
				return node.RemoveCluster(ctx, o.provider, node.Options{ClusterName: cluster, OutputDir: o.outputDir, Kubelet: part.kubelet})
			},
		})
	}
	outcomes := o.runAll(ctx, w, nodePartsAtOnce, runs)
	for i := range outcomes {
		if outcomes[i].err == nil && outcomes[i].report.PreRunStats.SpecsThatWillRun == 0 {
			outcomes[i].err = errors.New("the label filter selects no spec for " + outcomes[i].name)
		}
	}
	return outcomes
}

// measure runs the specs with a label for the guarded kubelet; at least one must have run.
func (o *options) measure(ctx context.Context, w io.Writer, label string, arguments ...string) error {
	outcome := o.runNode(ctx, w, whole(label, node.Guarded), arguments...)[0]
	if outcome.err == nil && specreport.Count(outcome.report).Passed == 0 {
		return errors.New("no spec with the label " + label + " ran: the node suite is older than this program (make node-e2e)")
	}
	return outcome.err
}
