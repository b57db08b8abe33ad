package node

import (
	"context"
	"fmt"
	"os"

	. "github.com/onsi/ginkgo/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// specLog reports on the specs of this suite. Its final failures are a pod that died, a
// deletion that was not honoured, and a guard that failed.
var specLog = specreport.NewLog()

// collect writes what explains a failure into the artifacts folder. It must not
// fail itself: it runs when something is broken already.
func (s *scene) collect(ctx context.Context) {
	artifacts := specreport.NewArtifacts(artifactsDir(), CurrentSpecReport())
	keep := artifacts.Keep
	log, err := os.ReadFile(provider.Node().Kubelet().LogPath())
	keep("kubelet.log", log, err)
	for name, path := range map[string]string{"metrics.txt": "/metrics", "guard-pods.json": guard.PodsPath, "kubelet-pods.json": "/pods"} {
		if variant == Stock && path == guard.PodsPath {
			continue
		}
		answer, err := provider.Node().Kubelet().Get(ctx, path)
		keep(name, answer, err)
	}
	pods, err := s.describePods(ctx)
	keep("pods.yaml", pods, err)
	events, err := client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{})
	text, marshalErr := yaml.Marshal(events)
	if err == nil {
		err = marshalErr
	}
	keep("events.yaml", text, err)
	containers, err := provider.Node().Runtime().Containers(ctx)
	keep("containers.txt", fmt.Appendf(nil, "%+v\n", containers), err)
	framework.Progress("artifacts: %s", artifacts.Dir)
}

func (s *scene) describePods(ctx context.Context) ([]byte, error) {
	pods, err := client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		pods.Items[i].ManagedFields = nil
	}
	return yaml.Marshal(pods)
}
