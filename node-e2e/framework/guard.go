package framework

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// Names of the guard's metrics that are of use on every node.
const (
	RefusedKills = "kubelet_guard_refused_kills_total"
	GuardErrors  = "kubelet_guard_errors_total"
	// DeletionLookups is the operation of GuardErrors that fails whenever the API server
	// is away.
	DeletionLookups = "PodDeletion"
)

// ByCause returns the values of a metric whose only label is the cause, without those that
// are zero.
func (m Metrics) ByCause(name string) map[guard.Cause]int {
	return ByLabel[guard.Cause](m[name].GetMetric(), "cause")
}

// FailedOperations returns how often each operation of the guard failed.
func (m Metrics) FailedOperations() map[string]int {
	return ByLabel[string](m[GuardErrors].GetMetric(), "operation")
}

// ParseGuardPods reads the response of a kubelet to GET /guard/pods.
func ParseGuardPods(text []byte) (guard.PodList, error) {
	var list guard.PodList
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&list); err != nil {
		return list, fmt.Errorf("GET %s: %w in %s", guard.PodsPath, err, text)
	}
	return list, nil
}

// FindGuardPod returns what a kubelet reports about one protected pod, or nil.
func FindGuardPod(list guard.PodList, uid types.UID) *guard.PodState {
	if i := slices.IndexFunc(list.Items, func(pod guard.PodState) bool { return pod.UID == uid }); i >= 0 {
		return &list.Items[i]
	}
	return nil
}

// HeldFor returns the causes of a pod's holds; a pod that the guard does not know has
// none.
func HeldFor(pod *guard.PodState) []guard.Cause {
	causes := []guard.Cause{}
	if pod != nil {
		for _, hold := range pod.Holds {
			causes = append(causes, hold.Cause)
		}
	}
	return causes
}

// ExpectKillRefused checks that the API shows a pod as held for the causes.
func ExpectKillRefused(g gomega.Gomega, pod *corev1.Pod, causes ...guard.Cause) {
	condition := testnode.PodCondition(pod, guard.PodKillRefused)
	g.Expect(condition).NotTo(gomega.BeNil(), "pod %s has a condition %s", pod.Name, guard.PodKillRefused)
	g.Expect(condition.Status).To(gomega.Equal(corev1.ConditionTrue), "condition %s of pod %s", guard.PodKillRefused, pod.Name)
	for _, cause := range causes {
		g.Expect(condition.Message).To(gomega.ContainSubstring(string(cause)), "message of condition %s of pod %s", guard.PodKillRefused, pod.Name)
	}
}
