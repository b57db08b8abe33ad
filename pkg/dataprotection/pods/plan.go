package pods

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/restore"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// planName is that of the plan in a journal.
const planName = "pods"

// Plan is what a restore from the nodes would do.
type Plan struct {
	*restore.Plan
	// Nodes that were queried.
	Nodes []Response `json:"nodes"`
	// Workloads to apply again, so that they adopt the pods.
	Workloads []Workload `json:"workloads,omitempty"`
}

// decision is about one pod whose object is gone.
type decision struct {
	node  string
	state guard.PodState
	// pod is as it is written; nil for one without a saved object.
	pod    *corev1.Pod
	claims []guard.ClaimedVolume
	// lost is the controller that is gone; nil for none.
	lost *metav1.OwnerReference
	// leaveOut says why the pod is not written; present: it is there already.
	leaveOut string
	present  bool
}

// Clients are those of the API server of the etcd that is written.
type Clients struct {
	Kube     kubernetes.Interface
	Metadata metadata.Interface
	API      *restore.API
}

// NewPlan returns what a restore of the pods in the responses would do. current is the etcd that
// would be written.
func NewPlan(ctx context.Context, responses []Response, decoder *objects.Decoder, prefix string, current *history.Live, clients Clients) (*Plan, error) {
	namespaces := map[string]bool{}
	for _, r := range responses {
		for _, state := range r.gone {
			namespaces[state.Namespace] = true
		}
	}
	c, err := readCluster(ctx, clients.Kube, clients.Metadata, namespaces)
	if err != nil {
		return nil, err
	}
	c.ownerPresent = clients.API.OwnerPresent
	decisions, err := c.decide(ctx, responses)
	if err != nil {
		return nil, err
	}
	given, err := c.given(ctx, decisions, decoder, prefix)
	if err != nil {
		return nil, err
	}
	plan, err := restore.NewPlanOf(ctx, planName, "nodes", given, decoder, prefix, current, clients.API)
	if err != nil {
		return nil, err
	}
	return &Plan{Plan: plan, Nodes: responses, Workloads: workloads(decisions)}, nil
}

// decide decides about each pod whose object is gone. Sorted by namespace, name and UID.
func (c *cluster) decide(ctx context.Context, responses []Response) ([]*decision, error) {
	var decisions []*decision
	restored := map[types.UID]bool{}
	for _, r := range responses {
		for _, state := range r.gone {
			d := &decision{node: r.Node, state: state}
			c.judge(d)
			decisions = append(decisions, d)
		}
	}
	slices.SortFunc(decisions, func(a, b *decision) int {
		return cmp.Or(cmp.Compare(a.state.Namespace, b.state.Namespace), cmp.Compare(a.state.Name, b.state.Name), cmp.Compare(a.state.UID, b.state.UID), cmp.Compare(a.node, b.node))
	})
	leaveOutDuplicates(decisions)
	for _, d := range decisions {
		restored[d.state.UID] = d.leaveOut == ""
	}
	for _, d := range decisions {
		if d.leaveOut != "" {
			continue
		}
		controller := metav1.GetControllerOf(d.pod)
		if err := c.removeLostOwners(ctx, &d.pod.ObjectMeta, restored); err != nil {
			return nil, err
		}
		if metav1.GetControllerOf(d.pod) == nil {
			d.lost = controller
		}
	}
	c.leaveOutSurplus(decisions)
	return decisions, nil
}

// judge decides about one pod by itself, and prepares what is written of it.
func (c *cluster) judge(d *decision) {
	state := &d.state
	saved := state.Saved
	vanished := slices.ContainsFunc(state.Holds, func(h guard.HoldState) bool { return h.Cause == guard.PodVanished })
	switch {
	case state.Evidence != nil:
		d.leaveOut = fmt.Sprintf("its deletion was requested (%s): it stays gone", state.Evidence.Kind)
	case state.State == guard.Terminating:
		d.leaveOut = "it ends"
	case c.records[state.UID]:
		d.leaveOut = "a PodDeletion record says that its deletion was requested: it stays gone"
	case state.State != guard.Held || !vanished:
		d.leaveOut = "its kubelet has not compared its pods with those of the API yet; run the command again"
	case saved == nil || saved.Pod == nil:
		d.leaveOut = "its node has no saved object of it"
	case saved.Pod.UID != state.UID || saved.Pod.Namespace != state.Namespace || saved.Pod.Name != state.Name || saved.Pod.DeletionTimestamp != nil:
		d.leaveOut = "the object that its node saved is of another pod, or terminating"
	case saved.Pod.Spec.NodeName != d.node:
		d.leaveOut = fmt.Sprintf("it is bound to the node %q, and this one is %q: repair the name of the node first", saved.Pod.Spec.NodeName, d.node)
	}
	if d.leaveOut != "" {
		return
	}
	d.pod = podToWrite(saved.Pod)
	// Found before what follows: a pod that is there with its UID needs no more.
	for i := range c.pods {
		if there := &c.pods[i]; there.Namespace == state.Namespace && there.Name == state.Name {
			d.present = there.UID == state.UID && there.DeletionTimestamp == nil
			switch {
			case d.present:
			case there.UID == state.UID:
				d.leaveOut = "it is there, and terminating"
			default:
				d.leaveOut = fmt.Sprintf("another pod has its name, with UID %s", there.UID)
			}
			if d.leaveOut != "" {
				return
			}
		}
	}
	node := c.nodes[d.node]
	switch {
	case !c.namespaces[state.Namespace]:
		d.leaveOut = fmt.Sprintf("its namespace is not there, or terminating; create %s first", state.Namespace)
	case node == nil:
		// pkg/controller/podgc: a pod whose node has no object is deleted after 40 seconds.
		d.leaveOut = fmt.Sprintf("its node has no object, and the pod would be deleted for that; restart the kubelet of %s, which creates it", d.node)
	case untolerated(node, d.pod) != "":
		d.leaveOut = fmt.Sprintf("its node has a taint that evicts it (%s)", untolerated(node, d.pod))
	default:
		d.claims, d.leaveOut = c.missingClaims(d.pod, saved.Volumes)
	}
}

// podToWrite returns a pod as it is written: its phase is empty, so that its kubelet writes what
// is true.
func podToWrite(saved *corev1.Pod) *corev1.Pod {
	pod := saved.DeepCopy()
	pod.ResourceVersion = ""
	pod.Status.Phase, pod.Status.Reason, pod.Status.Message = "", "", ""
	// The kubelet adds these to the objects that it works with.
	for _, own := range []string{"kubernetes.io/config.source", "kubernetes.io/config.seen"} {
		delete(pod.Annotations, own)
	}
	return pod
}

// leaveOutDuplicates leaves out the pods that have a name or a UID in common: no more than one of
// them can have its object again. They are sorted by namespace and name.
func leaveOutDuplicates(decisions []*decision) {
	byName, byUID := map[types.NamespacedName][]*decision{}, map[types.UID][]*decision{}
	for _, d := range decisions {
		if d.leaveOut == "" {
			name := types.NamespacedName{Namespace: d.state.Namespace, Name: d.state.Name}
			byName[name] = append(byName[name], d)
			byUID[d.state.UID] = append(byUID[d.state.UID], d)
		}
	}
	for _, same := range byName {
		for _, d := range same {
			if others := max(len(same), len(byUID[d.state.UID])); others > 1 {
				d.leaveOut = fmt.Sprintf("%d held pods have its name or its UID; release those that are not wanted", others)
			}
		}
	}
}

// given returns what the plan has: pods, and the claims and volumes that they need.
func (c *cluster) given(ctx context.Context, decisions []*decision, decoder *objects.Decoder, prefix string) ([]restore.Given, error) {
	var given []restore.Given
	written := map[types.UID]bool{}
	add := func(key string, kind string, object runtime.Object, m *metav1.ObjectMeta, leaveOut string) error {
		key = prefix + key
		o := &objects.Object{
			Key: key, GroupVersionKind: corev1.SchemeGroupVersion.WithKind(kind), Namespace: m.Namespace, Name: m.Name, UID: m.UID,
			Finalizers: m.Finalizers, Owners: m.OwnerReferences, Typed: object,
		}
		var value []byte
		if object != nil {
			var err error
			if value, err = decoder.Encode(ctx, key, corev1.SchemeGroupVersion, object); err != nil {
				return fmt.Errorf("%s: %w", o, err)
			}
		}
		given = append(given, restore.Given{Object: o, Value: value, LeaveOut: leaveOut})
		return nil
	}
	restored := map[types.UID]bool{}
	for _, d := range decisions {
		restored[d.state.UID] = d.leaveOut == ""
	}
	for _, d := range decisions {
		key := "pods/" + d.state.Namespace + "/" + d.state.Name
		if d.pod == nil || d.leaveOut != "" {
			m := metav1.ObjectMeta{Namespace: d.state.Namespace, Name: d.state.Name, UID: d.state.UID}
			if err := add(key, "Pod", nil, &m, d.leaveOut); err != nil {
				return nil, err
			}
			continue
		}
		if err := add(key, "Pod", d.pod, &d.pod.ObjectMeta, ""); err != nil {
			return nil, err
		}
		for _, missing := range d.claims {
			if missing.Claim != nil && !written[missing.Claim.UID] {
				written[missing.Claim.UID] = true
				claim := claimToWrite(missing.Claim)
				if err := c.removeLostOwners(ctx, &claim.ObjectMeta, restored); err != nil {
					return nil, err
				}
				if err := add("persistentvolumeclaims/"+claim.Namespace+"/"+claim.Name, "PersistentVolumeClaim", claim, &claim.ObjectMeta, ""); err != nil {
					return nil, err
				}
			}
			if missing.Volume != nil && !written[missing.Volume.UID] {
				written[missing.Volume.UID] = true
				volume := volumeToWrite(missing.Volume)
				if err := add("persistentvolumes/"+volume.Name, "PersistentVolume", volume, &volume.ObjectMeta, ""); err != nil {
					return nil, err
				}
			}
		}
	}
	return given, nil
}

// workloads returns what is to be applied again, sorted.
func workloads(decisions []*decision) []Workload {
	found := map[Workload]int{}
	for _, d := range decisions {
		if d.leaveOut == "" && d.lost != nil {
			kind, name := workloadOf(d.pod, d.lost)
			found[Workload{Kind: kind, Namespace: d.state.Namespace, Name: name}]++
		}
	}
	var list []Workload
	for w, pods := range found {
		w.Pods = pods
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return list
}
