package why

import (
	"fmt"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// advice is what to check for each cause; docs/holds.md has the longer text.
var advice = map[guard.Cause]string{
	guard.AdmissionRejected:      "See what changed before the last kubelet restart: flags, configuration, node labels, reserved resources, maxPods. Correct it and restart the kubelet; the pod is not touched.",
	guard.PodVanished:            "See whether a key was lost in etcd, a backup restored, or the pod deleted by force while its node was cut off, and whether the kubelet runs under the right node name. The object coming back ends the hold without a restart.",
	guard.OrphanedRuntimePod:     "The kubelet has no object of this pod, so it neither probes nor restarts it. The object coming back makes it a managed pod again.",
	guard.TerminalPhaseReported:  "Find out which client writes pod statuses besides the kubelet.",
	guard.Evicted:                "If the pressure is real, free the resource or delete a pod: protected pods are not available to the eviction manager. If not, correct the eviction thresholds.",
	guard.Preempted:              "A critical pod does not fit and was rejected. Make room for it, by deleting a pod if need be.",
	guard.NodeShutdown:           "Drain the node before it goes down, or let its guard configuration allow NodeShutdown.",
	guard.ActiveDeadlineExceeded: "The pod's own deadline has passed: delete the pod, or remove its label to let the deadline act.",
	guard.VolumeLimitExceeded:    "Detach volumes from the node, or see what its CSI driver reports as the limit.",
	guard.PodCgroupMissing:       "See whether cgroup root or driver of the kubelet were changed. The limits still apply in the old place.",
	guard.CgroupCleanup:          "See whether cgroup root or driver of the kubelet were changed. The limits still apply in the old place.",
	guard.SandboxChanged:         "The pause process died, or the runtime lost the sandbox. The pod serves on, but a container that exits cannot start again: delete the pod when it suits.",
	guard.ContainerHashChanged:   "See whether the runtime or the kubelet was upgraded or crashed: what they recorded about a container differs from its spec.",
	guard.ContainerStateUnknown:  "See the log of the container runtime: it does not know the state of a container.",
	guard.VolumeUnmount:          "See whether PVC, PV and CSI driver of the pod can be read.",
	guard.ResizeRecordLost:       "The kubelet has lost its record of the resources that apply (actuated_pods_state). The resize is done without a restart; the hold ends by itself.",
	guard.RestartReported:        "Find out which client writes pod statuses besides the kubelet. The API reported that all containers are being restarted, and all of them run. The kubelet writes the truth back.",
	guard.ObjectRolledBack:       "The API shows an older object of the pod, as after a restore of etcd. The pod runs by the newer one. Apply the manifest that you want: any change of the object ends the hold.",
	guard.ResourcesReclaimed:     "The kubelet has no object of this pod, whose devices, CPUs, memory or claims others would have got. Restore the object, or release the pod.",
	guard.MemoryLimitLowered:     "See what was reserved when the kubelet last started (systemReserved, kubeReserved, qosReserved): a limit above the pods would fall below what they use. Correct it and restart the kubelet, or delete pods; the limit follows within a minute.",
	guard.RuntimeStop:            "A path that no hook knows. Please report it with the kubelet's log.",
}

// adviceFor returns what can be done about a pod that needs action.
func adviceFor(diagnosis *podDiagnosis, f *podFacts) []string {
	var texts []string
	switch {
	case f.State == guard.Held:
		given := map[string]bool{}
		for _, hold := range f.Holds {
			if text := advice[hold.Cause]; text != "" && !given[text] {
				given[text] = true
				texts = append(texts, text)
			}
		}
		switch {
		case f.Waiting != nil && f.Waiting.HeldUID == f.UID:
			texts = append(texts, fmt.Sprintf("Its successor, UID %s, waits on this node and does not start before this pod has ended, because both would use %s. No Service reaches this pod any more, so nobody serves until you decide.", f.Waiting.UID, nodes.Shared(f.Waiting)))
		case f.Object == pods.Replaced:
			texts = append(texts, "Two copies run now, this pod and its successor: see that both may use what they share, or end one.")
		}
		if f.Object == pods.Present {
			texts = append(texts, fmt.Sprintf("To end the pod: kubectl delete pod -n %s %s", diagnosis.Namespace, diagnosis.Name))
		} else if f.Object != pods.Unknown {
			texts = append(texts, fmt.Sprintf("To end the pod: kubectl guard release -n %s %s --uid %s", diagnosis.Namespace, diagnosis.Name, f.UID))
		}
	case f.Waiting != nil && f.Waiting.UID == f.UID:
		texts = append(texts, fmt.Sprintf("To let it start, end the held pod: kubectl guard release -n %s %s --uid %s", diagnosis.Namespace, diagnosis.Name, f.Waiting.HeldUID))
	case f.State == "" && f.Object == pods.Present && !f.Static && f.Label == nil:
		texts = append(texts, fmt.Sprintf("To protect it: kubectl guard protect -n %s pod/%s", diagnosis.Namespace, diagnosis.Name))
	}
	return texts
}
