package release

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// choose returns the pods to release. A pod with which release can do nothing is
// an error, or, with --all, a line on stderr.
func (o *options) choose(ctx context.Context, c *factory.Clients, responses []nodes.Response) ([]pods.Pod, error) {
	found, silent := pods.Select(responses, func(pod guard.PodState) bool {
		switch {
		case o.all:
			return len(pod.Holds) > 0 && (!c.NamespaceGiven || pod.Namespace == c.Namespace)
		case o.uid != "" && pod.UID != types.UID(o.uid):
			return false
		case o.uid != "" && o.pod == "":
			return true
		}
		return pod.Namespace == c.Namespace && pod.Name == o.pod
	})
	pods.LookUpObjects(ctx, c.Kube, found)
	nodes.WarnUnreachable(o.Warn, silent, len(responses))
	if o.all {
		var chosen []pods.Pod
		for _, pod := range found {
			if err := releasable(pod); err != nil {
				fmt.Fprintf(o.ErrOut, "Skipped: %v\n", err)
				continue
			}
			chosen = append(chosen, pod)
		}
		if len(chosen) == 0 && len(silent) == 0 {
			fmt.Fprintf(o.ErrOut, "Node %s holds no pod whose object is gone; there is nothing to release.\n", o.node)
		} else if len(chosen) == 0 {
			return nil, fmt.Errorf("node %s did not report what it holds: %s", o.node, silent[0].Detail)
		}
		return chosen, nil
	}
	if len(found) == 0 {
		return o.unknown(ctx, c, len(silent))
	}
	return o.chooseOne(found)
}

// chooseOne picks the pod that is meant from those that share the name: a held
// pod, its successor, and what is ending may.
func (o *options) chooseOne(found []pods.Pod) ([]pods.Pod, error) {
	var (
		chosen, ending []pods.Pod
		errs           []error
	)
	for _, pod := range found {
		if pod.State == guard.Terminating {
			ending = append(ending, pod)
		} else if err := releasable(pod); err != nil {
			errs = append(errs, err)
		} else {
			chosen = append(chosen, pod)
		}
	}
	switch {
	case len(chosen) == 1:
		return chosen, nil
	case len(chosen) > 1:
		list := ""
		for _, pod := range chosen {
			list += fmt.Sprintf("\n  --uid %s (node %s)", pod.UID, pod.Node)
		}
		return nil, fmt.Errorf("several pods that were %s are held; choose one:%s", chosen[0].Key(), list)
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	}
	// No error: the command may be repeated.
	for _, pod := range ending {
		fmt.Fprintf(o.ErrOut, "Pod %s on node %s is terminating already (UID %s); there is nothing to release.\n", pod.Key(), pod.Node, pod.UID)
	}
	return nil, nil
}

// releasable returns an error when a record for the pod would do nothing: why, and what to do
// instead.
func releasable(pod pods.Pod) error {
	switch {
	case pod.Object == pods.Present && !pod.ObjectPresent:
		on := pod.Own.Spec.NodeName
		if on != pod.Node {
			return fmt.Errorf("pod %s: its object is there, bound to node %q, but it runs on node %s, which therefore does not see it; correct the kubelet's node name, and delete the pod (kubectl delete pod -n %s %s) if it is to end", pod.Key(), on, pod.Node, pod.Namespace, pod.Name)
		}
		return fmt.Errorf("pod %s: its object is there, although the kubelet of %s does not see it yet; use kubectl delete pod -n %s %s", pod.Key(), pod.Node, pod.Namespace, pod.Name)
	case pod.Object == pods.Present:
		return fmt.Errorf("pod %s: its object is still there; use kubectl delete pod -n %s %s, which works for held pods as for any other", pod.Key(), pod.Namespace, pod.Name)
	case pod.Object == pods.Unknown:
		return fmt.Errorf("pod %s: cannot determine whether its object is there: %s", pod.Key(), pod.ObjectError)
	case len(pod.Holds) == 0:
		return fmt.Errorf("pod %s is not held by node %s; there is nothing to release", pod.Key(), pod.Node)
	}
	return nil
}

// unknown is for a pod that no node that responds knows: a record can be written
// for later when its UID and name were given.
func (o *options) unknown(ctx context.Context, c *factory.Clients, silent int) ([]pods.Pod, error) {
	if o.pod == "" {
		return nil, fmt.Errorf("no node that responds has a protected pod with UID %s; to write a record for later, give its name as well: kubectl guard release -n NAMESPACE NAME --uid %s", o.uid, o.uid)
	}
	pod := pods.Pod{PodState: guard.PodState{Namespace: c.Namespace, Name: o.pod, UID: types.UID(o.uid)}}
	pods.LookUpObject(ctx, c.Kube, &pod)
	switch {
	case pod.Object == pods.Unknown:
		return nil, releasable(pod)
	case pod.Object == pods.Present || pod.Object == pods.Replaced && o.uid == "":
		return nil, fmt.Errorf("pod %s: its object is there, so it needs no release; use kubectl delete pod -n %s %s, with --force --grace-period=0 if its node is lost", pod.Key(), pod.Namespace, pod.Name)
	case o.uid == "" && silent > 0:
		return nil, fmt.Errorf("no node that responds has a protected pod %s; if it ran on another one, give its --uid to write the record for later", pod.Key())
	case o.uid == "":
		return nil, fmt.Errorf("no node has a protected pod %s; see kubectl guard holds -A", pod.Key())
	case silent == 0:
		o.Warn("all nodes responded, and none has a pod with UID %s; is the UID right?", o.uid)
	}
	return []pods.Pod{pod}, nil
}
