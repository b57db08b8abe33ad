package controlplane

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"

	"kubelet-guard.io/node-e2e/framework"
)

// collectTimeout bounds what is asked of a cluster that may be broken.
const collectTimeout = 30 * time.Second

var _ = AfterEach(func(ctx SpecContext) {
	if CurrentSpecReport().Failed() {
		collect(ctx)
	}
}, NodeTimeout(collectTimeout))

// collect writes what explains a failure into the artifacts folder. It must not
// fail itself: it runs when something is broken already.
func collect(ctx context.Context) {
	artifacts := specLog.NewArtifacts(artifactsDir())
	for file, args := range map[string][]string{
		"objects.yaml":       {"get", "deployments,replicasets,statefulsets,pods,events,poddisruptionbudgets", "-A", "-o", "yaml"},
		"admission.yaml":     {"get", "validatingadmissionpolicies,validatingadmissionpolicybindings,validatingwebhookconfigurations,mutatingadmissionpolicies", "-o", "yaml"},
		"webhook-log.txt":    {"logs", "-n", guardNamespace, "-l", webhookSelector, "--tail=2000", "--prefix"},
		"webhook-before.txt": {"logs", "-n", guardNamespace, "-l", webhookSelector, "--tail=2000", "--prefix", "--previous"},
	} {
		answer := kubectl(ctx, args...)
		artifacts.Keep(file, []byte(answer.Output()), nil)
	}
	framework.Progress("artifacts: %s", artifacts.Dir)
}
