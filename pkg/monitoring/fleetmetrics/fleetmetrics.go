/*
Package fleetmetrics counts how far the protection labels are backed: by guarded kubelets, since
a label on a pod of a stock node has no effect there, and by PodDisruptionBudgets,
since nothing limits the deletion of a pod that none selects.

Pods are counted as their events come, by node and by labels. What these numbers mean
(which nodes are guarded, which labels a budget selects) is looked up when the metrics are
read, so that a read costs nothing per pod. No label names a node or a pod.
*/
package fleetmetrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// Names of the metrics.
const (
	NodesMetric          = "guard_webhook_nodes"
	ProtectedNodesMetric = "guard_webhook_nodes_with_protected_pods"
	ProtectedPodsMetric  = "guard_webhook_protected_pods"
	WithoutBudgetMetric  = "guard_webhook_protected_pods_without_budget"
)

// Kubelet is the kind of a node's kubelet. The zero value is invalid.
type Kubelet string

const (
	// Guarded: the kubelet's version has the suffix of this project.
	Guarded Kubelet = "Guarded"
	// Unguarded: any other kubelet.
	Unguarded Kubelet = "Unguarded"
	// Missing: pods are bound to a node that has no object.
	Missing Kubelet = "Missing"
)

// Kubelets returns all values.
func Kubelets() []Kubelet { return []Kubelet{Guarded, Unguarded, Missing} }

// versionMark is in the version of every guarded kubelet: v1.36.3+guard.0.1.0.
const versionMark = "+guard."

// Lister reads caches.
type Lister interface {
	// Nodes calls visit with each node's name and the version of its kubelet.
	Nodes(visit func(name, kubeletVersion string)) error
	// ProtectedPods calls visit once with each node that protected pods are bound to which
	// have not finished, and with their number.
	ProtectedPods(visit func(node string, pods int)) error
	// WithoutBudget returns how many of these pods no PodDisruptionBudget selects.
	WithoutBudget() (int, error)
}

// Counts are numbers by kubelet. A kubelet that is not in the map has none.
type Counts struct {
	Nodes, ProtectedNodes, ProtectedPods map[Kubelet]int
}

// Count reads the caches once.
func Count(lister Lister) (Counts, error) {
	counts := Counts{Nodes: map[Kubelet]int{}, ProtectedNodes: map[Kubelet]int{}, ProtectedPods: map[Kubelet]int{}}
	kubelets := map[string]Kubelet{}
	if err := lister.Nodes(func(name, version string) {
		kubelet := Unguarded
		if strings.Contains(version, versionMark) {
			kubelet = Guarded
		}
		kubelets[name] = kubelet
		counts.Nodes[kubelet]++
	}); err != nil {
		return Counts{}, err
	}
	err := lister.ProtectedPods(func(node string, pods int) {
		kubelet, ok := kubelets[node]
		if !ok {
			kubelet = Missing
		}
		counts.ProtectedPods[kubelet] += pods
		counts.ProtectedNodes[kubelet]++
	})
	return counts, err
}

// runs reports whether the pod is bound and has not finished.
func runs(pod *corev1.Pod) bool {
	return pod.Spec.NodeName != "" && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// Collector is a prometheus.Collector. It is safe for concurrent use.
type Collector struct {
	lister                                          Lister
	nodes, protectedNodes, protected, withoutBudget *prometheus.Desc
}

// NewCollector returns a Collector of what the lister sees. A metric has no series while
// the lister fails: caches that are not filled yet would count too little.
func NewCollector(lister Lister) *Collector {
	labels := []string{"kubelet"}
	return &Collector{
		lister: lister,
		nodes: prometheus.NewDesc(NodesMetric,
			"Nodes of the cluster.", labels, nil),
		protectedNodes: prometheus.NewDesc(ProtectedNodesMetric,
			"Nodes that run protected pods. With kubelet Unguarded the label of these pods stops nothing on the node.", labels, nil),
		protected: prometheus.NewDesc(ProtectedPodsMetric,
			"Protected pods that are bound to a node and have not finished.", labels, nil),
		withoutBudget: prometheus.NewDesc(WithoutBudgetMetric,
			"Protected pods that are bound to a node and have not finished, and that no PodDisruptionBudget selects: nothing limits how many of them are deleted at once.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- c.nodes
	descriptions <- c.protectedNodes
	descriptions <- c.protected
	descriptions <- c.withoutBudget
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	if pods, err := c.lister.WithoutBudget(); err == nil {
		metrics <- prometheus.MustNewConstMetric(c.withoutBudget, prometheus.GaugeValue, float64(pods))
	}
	counts, err := Count(c.lister)
	if err != nil {
		return
	}
	for _, family := range []struct {
		description *prometheus.Desc
		numbers     map[Kubelet]int
	}{{c.nodes, counts.Nodes}, {c.protectedNodes, counts.ProtectedNodes}, {c.protected, counts.ProtectedPods}} {
		for _, kubelet := range Kubelets() {
			if family.description == c.nodes && kubelet == Missing {
				continue
			}
			metrics <- prometheus.MustNewConstMetric(family.description, prometheus.GaugeValue, float64(family.numbers[kubelet]), string(kubelet))
		}
	}
}
