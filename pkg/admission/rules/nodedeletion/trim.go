package nodedeletion

import (
	"unique"

	corev1 "k8s.io/api/core/v1"
)

// TrimNode is a transformation for the cache of nodes: it removes what nothing here
// reads, which is most of it. The rule reads the condition Ready, the metrics of
// package fleetmetrics the kubelet's version, and package poddeletion the taints that evict.
func TrimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	node.ManagedFields, node.Annotations = nil, nil
	node.Name, node.Labels = intern(node.Name), internAll(node.Labels)
	// What is left is copied: what is cut off a slice stays in memory with it.
	node.Spec = corev1.NodeSpec{Taints: copyOf(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute
	})}
	node.Status = corev1.NodeStatus{
		Conditions: copyOf(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady
		}),
		NodeInfo: corev1.NodeSystemInfo{KubeletVersion: intern(node.Status.NodeInfo.KubeletVersion)},
	}
	return node, nil
}

// copyOf returns a copy of those that are to be kept.
func copyOf[T any](all []T, keep func(T) bool) []T {
	var some []T
	for _, one := range all {
		if keep(one) {
			some = append(some, one)
		}
	}
	return some
}

// intern returns the text in the one copy that all caches of this process share: thousands of nodes
// have the same labels, and each is decoded with its own.
func intern(text string) string { return unique.Make(text).Value() }

func internAll(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	interned := make(map[string]string, len(labels))
	for key, value := range labels {
		interned[intern(key)] = intern(value)
	}
	return interned
}
