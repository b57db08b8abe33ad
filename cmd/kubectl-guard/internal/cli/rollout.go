package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// defaultRolloutTimeout is for a node on which nothing moves: the image is pulled, the
// kubelet exchanged, verified and, if need be, put back in a few minutes.
const defaultRolloutTimeout = 10 * time.Minute

func newRolloutCommand(s *settings) *cobra.Command {
	command := &cobra.Command{
		Use:   "rollout",
		Short: "Bring the guarded kubelet to pools of nodes, and take it away",
		Long: `Bring the guarded kubelet to pools of nodes, and take it away.

A pool is a name and a selector of nodes. Each has a DaemonSet of installers in the
namespace ` + rollout.Namespace + `. Kubernetes replaces the installers, at most
--max-unavailable at a time; each one exchanges the kubelet of its node, sees that it
is healthy and guarded and that the same containers run, and otherwise puts the old
one back and is not ready, so that the roll-out stops there.

The documented order is one pool after the other, Audit first, then Enforce.`,
		Example: `  kubectl guard rollout start --pool blue=pool=blue --mode Audit --image IMAGE
  kubectl guard rollout status
  kubectl guard rollout start --pool blue --mode Enforce
  kubectl guard rollout undo --pool blue`,
		Args: onlyCommands,
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	command.AddCommand(
		newRolloutStartCommand(s), newRolloutStatusCommand(s), newRolloutPauseCommand(s),
		newRolloutResumeCommand(s), newRolloutUndoCommand(s), newRolloutUninstallCommand(s),
	)
	return command
}

// nodePool is a pool with what the cluster has of it.
type nodePool struct {
	rollout.Pool
	// problem is why the pool's DaemonSet cannot be read; it has no more than a name then.
	problem error
	// set is nil for a pool that has no installers yet.
	set *appsv1.DaemonSet
	// asked has what was asked for, newest last; empty: nothing but to observe.
	asked []rollout.Request
	// nodes in the order of their names.
	nodes []corev1.Node
	// shared has the names of the other pools that select a node, by node.
	shared map[string][]string
	// watch tells of the nodes; nil before the first look.
	watch *nodeWatch
	// stale has reports that do not count any more, by node.
	stale map[string]*rollout.Report
}

// current is what was asked for last; nil: nothing but to observe.
func (p *nodePool) current() *rollout.Request {
	if len(p.asked) == 0 {
		return nil
	}
	return &p.asked[len(p.asked)-1]
}

// fleet is what the cluster has for roll-outs.
type fleet struct {
	nodes []corev1.Node
	pools []*nodePool
}

func (f *fleet) pool(name string) *nodePool {
	for _, p := range f.pools {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// fill gives a pool its nodes.
func (f *fleet) fill(p *nodePool) {
	for i := range f.nodes {
		if p.Matches(&f.nodes[i]) {
			p.nodes = append(p.nodes, f.nodes[i])
		}
	}
}

// withAll gives a pool the nodes back that were left out.
func (f *fleet) withAll(p *nodePool) {
	if len(p.Without) > 0 {
		p.Without, p.nodes = nil, nil
		f.fill(p)
	}
}

// changedByOthers is the error for a pool of which somebody else has requested something.
func (p *nodePool) changedByOthers(is rollout.Request) error {
	return fmt.Errorf("pool %s: somebody else has changed it meanwhile: it is asked for %s; see kubectl guard rollout status", p.Name, requestText(is))
}

// readFleet reads nodes and pools.
func readFleet(ctx context.Context, kube kubernetes.Interface) (*fleet, error) {
	f := &fleet{}
	if _, err := eachNode(ctx, kube, "", func(node corev1.Node) { f.nodes = append(f.nodes, node) }); err != nil {
		return nil, err
	}
	sort.Slice(f.nodes, func(i, j int) bool { return f.nodes[i].Name < f.nodes[j].Name })
	return f, f.readPools(ctx, kube)
}

// readPools reads the pools of a fleet whose nodes are known.
func (f *fleet) readPools(ctx context.Context, kube kubernetes.Interface) error {
	sets, err := kube.AppsV1().DaemonSets(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel})
	if err != nil {
		return fmt.Errorf("list the pools (DaemonSets in namespace %s): %w", rollout.Namespace, err)
	}
	for i := range sets.Items {
		set := &sets.Items[i]
		p, err := poolOf(set)
		if err != nil {
			// One that a later release has made, say, must not hide the others.
			p = &nodePool{Pool: rollout.Pool{Name: set.Labels[rollout.PoolLabel]}, set: set, problem: err}
		}
		f.fill(p)
		f.pools = append(f.pools, p)
	}
	f.share()
	return nil
}

// share finds the nodes that several pools select.
func (f *fleet) share() {
	for _, p := range f.pools {
		p.shared = map[string][]string{}
		for _, other := range f.pools {
			for i := range p.nodes {
				if other != p && other.problem == nil && other.Matches(&p.nodes[i]) {
					p.shared[p.nodes[i].Name] = append(p.shared[p.nodes[i].Name], other.Name)
				}
			}
		}
	}
}

// historyAnnotation on a DaemonSet has the requests that were made of the pool, newest
// last. The one in the template is another while installers only look.
const historyAnnotation = guardv1alpha1.GroupName + "/rollout-history"

// historyLength bounds how far undo goes back.
const historyLength = 5

// poolOf reads a pool from its DaemonSet.
func poolOf(set *appsv1.DaemonSet) (*nodePool, error) {
	pool, err := rollout.PoolOf(set)
	if err != nil {
		return nil, err
	}
	p := &nodePool{Pool: pool, set: set}
	request, err := rollout.RequestOf(set)
	if err != nil {
		return nil, err
	}
	if history, kept := set.Annotations[historyAnnotation]; kept {
		if err := json.Unmarshal([]byte(history), &p.asked); err != nil {
			return nil, fmt.Errorf("daemonset %s/%s: annotation %s: %w", set.Namespace, set.Name, historyAnnotation, err)
		}
	}
	// The template may have been changed by somebody else.
	if current := p.current(); request.Target != rollout.Observe && (current == nil || current.ID() != request.ID()) {
		p.asked = remember(p.asked, request)
	}
	return p, nil
}

// remember is the history with another request.
func remember(asked []rollout.Request, request rollout.Request) []rollout.Request {
	asked = append(slices.Clone(asked), request)
	for i := range asked[:len(asked)-1] {
		// A yes is for one time.
		asked[i].ReleaseHeldUIDs, asked[i].ReleaseHeld = nil, false
	}
	return asked[max(0, len(asked)-historyLength):]
}

// put makes the DaemonSet of a pool ask for the request, and keeps the history. With
// dry, the API server checks it only.
func (p *nodePool) put(ctx context.Context, kube kubernetes.Interface, request rollout.Request, asked []rollout.Request, dry bool) error {
	wanted, err := daemonSet(p.Pool, request, asked)
	if err != nil {
		return err
	}
	wanted.Annotations[rollout.StartedAnnotation] = time.Now().UTC().Format(time.RFC3339)
	var dryRun []string
	if dry {
		dryRun = []string{metav1.DryRunAll}
	}
	sets := kube.AppsV1().DaemonSets(rollout.Namespace)
	var written *appsv1.DaemonSet
	if p.set == nil {
		written, err = sets.Create(ctx, wanted, metav1.CreateOptions{FieldManager: fieldManager, DryRun: dryRun})
	} else {
		err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
			set, err := sets.Get(ctx, wanted.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if err := unchanged(p, set); err != nil {
				return err
			}
			set.Spec = wanted.Spec
			for key, value := range wanted.Annotations {
				metav1.SetMetaDataAnnotation(&set.ObjectMeta, key, value)
			}
			// What is asked for now is to begin.
			delete(set.Annotations, rollout.PausedAnnotation)
			written, err = sets.Update(ctx, set, metav1.UpdateOptions{FieldManager: fieldManager, DryRun: dryRun})
			return err
		})
	}
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("pool %s: %w; apply the manifests of the roll-out: kubectl apply -k manifests/rollout", p.Name, err)
	case err != nil:
		return fmt.Errorf("pool %s: write DaemonSet %s: %w", p.Name, wanted.Name, err)
	}
	if !dry {
		p.set, p.asked = written, asked
	}
	return nil
}

// unchanged returns an error when somebody else has asked the pool for something since
// it was read: what was agreed to was a plan for something else.
func unchanged(p *nodePool, set *appsv1.DaemonSet) error {
	was, err := rollout.RequestOf(p.set)
	if err != nil {
		return err
	}
	is, err := rollout.RequestOf(set)
	if err != nil {
		return err
	}
	if is.ID() != was.ID() || set.UID != p.set.UID {
		return fmt.Errorf("somebody else has changed it meanwhile: it is asked for %s; see kubectl guard rollout status, and begin anew", requestText(is))
	}
	return nil
}

// daemonSet is the DaemonSet of a pool with its history.
func daemonSet(pool rollout.Pool, request rollout.Request, asked []rollout.Request) (*appsv1.DaemonSet, error) {
	set, err := rollout.DaemonSet(pool, request)
	if err != nil {
		return nil, err
	}
	if request.Target == rollout.Observe {
		// Installers that only look change nothing: all may be replaced at once.
		set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromString("100%"))
	}
	if asked == nil {
		asked = []rollout.Request{}
	}
	history, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("pool %s: its history: %w", pool.Name, err)
	}
	set.Annotations = map[string]string{historyAnnotation: string(history)}
	return set, nil
}

// change changes the DaemonSet of a pool.
func (p *nodePool) change(ctx context.Context, kube kubernetes.Interface, change func(*appsv1.DaemonSet)) error {
	sets := kube.AppsV1().DaemonSets(rollout.Namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		set, err := sets.Get(ctx, p.set.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(set)
		p.set, err = sets.Update(ctx, set, metav1.UpdateOptions{FieldManager: fieldManager})
		return err
	})
	if err != nil {
		return fmt.Errorf("pool %s: change DaemonSet %s: %w", p.Name, rollout.DaemonSetName(p.Name), err)
	}
	return nil
}

// readPool reads DaemonSet and nodes of a pool again. The nodes come from a watch that
// begins with the first call and lasts as long as that call's context.
func (p *nodePool) read(ctx context.Context, kube kubernetes.Interface, retry time.Duration) error {
	set, err := kube.AppsV1().DaemonSets(rollout.Namespace).Get(ctx, rollout.DaemonSetName(p.Name), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.Name, err)
	}
	if p.watch == nil {
		p.watch = watchNodes(ctx, kube, p.Selector, retry)
	}
	if err := p.watch.first(ctx); err != nil {
		return fmt.Errorf("pool %s: %w", p.Name, err)
	}
	list, err := p.watch.list()
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.Name, err)
	}
	p.set = set
	p.nodes = slices.DeleteFunc(list, func(node corev1.Node) bool { return !p.Matches(&node) })
	return nil
}

// eachInstaller reads the pods of a pool page by page.
func (p *nodePool) eachInstaller(ctx context.Context, kube kubernetes.Interface, use func(*corev1.Pod)) error {
	options := metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name, Limit: nodesPage}
	for {
		page, err := kube.CoreV1().Pods(rollout.Namespace).List(ctx, options)
		if err != nil {
			return fmt.Errorf("pool %s: list its installers: %w", p.Name, err)
		}
		for i := range page.Items {
			use(&page.Items[i])
		}
		if page.Continue == "" {
			return nil
		}
		options.Continue = page.Continue
	}
}

// removePool takes the installers of a pool away, and what they left in the API. The
// kubelets stay as they are.
func (o *rolloutWait) removePool(ctx context.Context, c *clients, p *nodePool) error {
	foreground := metav1.DeletePropagationForeground
	err := c.kube.AppsV1().DaemonSets(rollout.Namespace).Delete(ctx, rollout.DaemonSetName(p.Name), metav1.DeleteOptions{PropagationPolicy: &foreground})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("pool %s: delete its DaemonSet: %w", p.Name, err)
	}
	// An installer that still runs would write its report again.
	deadline := o.now().Add(o.timeout)
	for {
		n, name, on := 0, "", ""
		err := p.eachInstaller(ctx, c.kube, func(pod *corev1.Pod) { n, name, on = n+1, pod.Name, nodeOf(pod) })
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if o.now().After(deadline) {
			return fmt.Errorf("pool %s: its installers were deleted and %s there after %s, such as %s on node %s; give the command again", p.Name, areStill(n), o.timeout, name, on)
		}
		if err := o.sleep(ctx); err != nil {
			return err
		}
	}
	leases := c.kube.CoordinationV1().Leases(rollout.Namespace)
	list, err := leases.List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name})
	if err != nil {
		return fmt.Errorf("pool %s: list its slots: %w", p.Name, err)
	}
	for _, lease := range list.Items {
		if err := leases.Delete(ctx, lease.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("pool %s: delete slot %s: %w", p.Name, lease.Name, err)
		}
	}
	p.set = nil
	return unmarkAll(ctx, c.kube, p.nodes, true)
}

func areStill(n int) string {
	if n == 1 {
		return "1 is still"
	}
	return fmt.Sprintf("%d are still", n)
}

// unmarkAll is unmark for many nodes. It tries all, and its error has at most ten.
func unmarkAll(ctx context.Context, kube kubernetes.Interface, list []corev1.Node, all bool) error {
	errs := make([]error, len(list))
	var group errgroup.Group
	group.SetLimit(lookups)
	for i := range list {
		group.Go(func() error {
			errs[i] = unmark(ctx, kube, &list[i], all)
			return nil
		})
	}
	_ = group.Wait() // each has its own error
	return firstErrors(errs)
}

// firstErrors joins at most ten errors.
func firstErrors(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) > examples {
		errs = append(errs[:examples], fmt.Errorf("and %d more errors", len(errs)-examples))
	}
	return errors.Join(errs...)
}

// unmark takes the mark of a failure off a node, and with all whatever else a roll-out
// and a guarded kubelet have left in its Node.
func unmark(ctx context.Context, kube kubernetes.Interface, node *corev1.Node, all bool) error {
	_, reported := node.Annotations[rollout.ReportAnnotation]
	_, marked := node.Labels[rollout.StateLabel]
	metadata := map[string]any{}
	if marked {
		metadata["labels"] = map[string]any{rollout.StateLabel: nil}
	}
	switch {
	case all && reported:
		metadata["annotations"] = map[string]any{rollout.ReportAnnotation: nil, rollout.ResumeAnnotation: nil}
	case !all && reported:
		// The installer tries again what has this value.
		if report, err := rollout.ReportOf(node); err == nil && report.Attempt != "" {
			metadata["annotations"] = map[string]any{rollout.ResumeAnnotation: report.Attempt}
		}
	}
	if len(metadata) > 0 {
		if err := patchNode(ctx, kube, node, types.MergePatchType, map[string]any{"metadata": metadata}); err != nil {
			return fmt.Errorf("node %s: take the mark of the roll-out off: %w", node.Name, err)
		}
	}
	if !all {
		return nil
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == guard.NodeHoldingPods {
			// A kubelet without guard leaves it as it was, for ever.
			removal := map[string]any{"type": guard.NodeHoldingPods, "$patch": "delete"}
			if err := patchNode(ctx, kube, node, types.StrategicMergePatchType, map[string]any{"status": map[string]any{"conditions": []any{removal}}}, "status"); err != nil {
				return fmt.Errorf("node %s: remove the condition %s, which no kubelet updates any more: %w", node.Name, guard.NodeHoldingPods, err)
			}
		}
	}
	return nil
}

// patchNode patches a node. One that is gone needs nothing.
func patchNode(ctx context.Context, kube kubernetes.Interface, node *corev1.Node, kind types.PatchType, content map[string]any, subresources ...string) error {
	patch, err := json.Marshal(content)
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().Nodes().Patch(ctx, node.Name, kind, patch, metav1.PatchOptions{FieldManager: fieldManager}, subresources...)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
