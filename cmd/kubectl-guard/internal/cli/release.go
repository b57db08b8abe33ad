package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// defaultReleaseTimeout covers a look-up of the kubelet (30 s at worst) and the
	// default grace period of a pod (30 s), with room for a busy node.
	defaultReleaseTimeout = 90 * time.Second
	defaultRecordTTL      = guardv1alpha1.PodDeletionLifetime
)

// released is one item of the output of kubectl guard release.
type released struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// Node is empty when no node that answers knows the pod.
	Node string `json:"node,omitempty"`
	// Record is Created, or Existed when there was one before.
	Record string `json:"record"`
	// Taken and Ended are seconds from the record to when the kubelet was seen to
	// have taken it as evidence, and to when its guard had forgotten the pod, which
	// it does no earlier than half a minute after the object went away.
	Taken *float64 `json:"takenSeconds,omitempty"`
	Ended *float64 `json:"endedSeconds,omitempty"`
}

type releasedList struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Items      []released `json:"items"`
}

type releaseOptions struct {
	*settings
	output *output
	dryRun dryRun

	pod     string
	uid     string
	node    string
	all     bool
	yes     bool
	reason  string
	ttl     time.Duration
	timeout time.Duration
}

func newReleaseCommand(s *settings) *cobra.Command {
	o := &releaseOptions{settings: s, output: newOutput()}
	command := &cobra.Command{
		Use:   "release (POD | --uid=UID | --all --node=NODE)",
		Short: "Let the kubelet end held pods whose object is gone",
		Long: `Let the kubelet end held pods whose object is gone.

A held pod whose object is still there is deleted as ever: kubectl delete pod. For
one whose object is gone, this writes a PodDeletion record, named by the UID of the
pod. The kubelet looks for it every 10 to 12 seconds and then terminates the pod with its
own grace period. A later pod of the same name is not touched.

With --uid and POD together a record can be written before any node asks for it:
after a forced delete while the node was cut off, it lets the kubelet end the pod
when the node is back.`,
		Example: `  kubectl guard release web-0
  kubectl guard release --all --node worker-3 --dry-run=client
  kubectl guard release web-0 --uid 3f0d4c1e-8d0e-4f0b-9a57-0c1f6a3b2d10 --yes`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeHeldPods(s),
		RunE: func(command *cobra.Command, arguments []string) error {
			if err := o.complete(arguments); err != nil {
				return err
			}
			return o.run(command.Context())
		},
	}
	o.output.addFlags(command)
	o.dryRun.addFlag(command)
	flags := command.Flags()
	flags.StringVar(&o.uid, "uid", "", "UID of the pod, for a name that several held pods had")
	flags.StringVar(&o.node, "node", "", "Ask this node only")
	flags.BoolVar(&o.all, "all", false, "Release every held pod of --node whose object is gone, of all namespaces unless -n is given")
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask")
	flags.StringVar(&o.reason, "reason", "", "Why, for the record")
	flags.DurationVar(&o.ttl, "record-ttl", defaultRecordTTL, "How long the record is to be kept; 0: for ever")
	flags.DurationVar(&o.timeout, "timeout", defaultReleaseTimeout, "How long to wait for the pods to end; 0: do not wait")
	_ = command.RegisterFlagCompletionFunc("node", completeNodes(s))
	for _, flag := range []string{"uid", "reason"} {
		_ = command.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return command
}

func (o *releaseOptions) complete(arguments []string) error {
	if len(arguments) == 1 {
		name, err := podArgument(arguments[0])
		if err != nil {
			return err
		}
		o.pod = name
	}
	switch {
	case o.all && (o.pod != "" || o.uid != ""):
		return errors.New("--all goes with --node, not with a pod or --uid")
	case o.all && o.node == "":
		return errors.New("--all needs --node: there is no release of a whole cluster at once")
	case !o.all && o.pod == "" && o.uid == "":
		return errors.New("which pod? give POD, --uid=UID, or --all --node=NODE")
	case o.ttl < 0:
		return errors.New("--record-ttl must not be negative")
	case o.timeout < 0:
		return errors.New("--timeout must not be negative")
	case !o.output.forPeople() && !o.yes && o.dryRun == dryRunNone:
		return errors.New("--output for programs leaves no room for a question: give --yes or --dry-run")
	}
	return o.output.check()
}

func (o *releaseOptions) run(ctx context.Context) error {
	c, err := o.connect()
	if err != nil {
		return err
	}
	answers, err := c.nodes.Query(ctx, o.node)
	if err != nil {
		return err
	}
	pods, err := o.choose(ctx, c, answers)
	if err != nil || len(pods) == 0 {
		return err
	}
	if o.output.forPeople() {
		if err := o.explain(pods); err != nil {
			return err
		}
	}
	if !o.yes && o.dryRun == dryRunNone {
		if err := o.confirm(ctx, fmt.Sprintf("Release %s?", count(len(pods), "pod"))); err != nil {
			return err
		}
	}
	return o.release(ctx, c, pods)
}

// choose returns the pods to release. A pod with which release can do nothing is
// an error, or, when all were asked for, a line on stderr.
func (o *releaseOptions) choose(ctx context.Context, c *clients, answers []nodes.Answer) ([]knownPod, error) {
	found, silent := podsOf(answers, func(pod guard.PodState) bool {
		switch {
		case o.all:
			return len(pod.Holds) > 0 && (!c.explicit || pod.Namespace == c.namespace)
		case o.uid != "" && pod.UID != types.UID(o.uid):
			return false
		case o.uid != "" && o.pod == "":
			return true
		}
		return pod.Namespace == c.namespace && pod.Name == o.pod
	})
	lookUpObjects(ctx, c.kube, found)
	warnSilent(o.warn, silent, len(answers))
	if o.all {
		var chosen []knownPod
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
			return nil, fmt.Errorf("node %s did not say what it holds: %s", o.node, silent[0].Detail)
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
func (o *releaseOptions) chooseOne(found []knownPod) ([]knownPod, error) {
	var (
		chosen, ending []knownPod
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
		return nil, fmt.Errorf("several pods that were %s are held; choose one:%s", chosen[0].key(), list)
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	}
	// As asked for, so no error: the command may be repeated.
	for _, pod := range ending {
		fmt.Fprintf(o.ErrOut, "Pod %s on node %s is terminating already (UID %s); there is nothing to release.\n", pod.key(), pod.Node, pod.UID)
	}
	return nil, nil
}

// releasable returns an error that says why a record for the pod would do
// nothing, and what to do instead.
func releasable(pod knownPod) error {
	switch {
	case pod.Object == objectPresent && !pod.ObjectPresent:
		on := pod.object.Spec.NodeName
		if on != pod.Node {
			return fmt.Errorf("pod %s: its object is there, bound to node %q, but it runs on node %s, which therefore does not see it; correct the kubelet's node name, and delete the pod (kubectl delete pod -n %s %s) if it is to end", pod.key(), on, pod.Node, pod.Namespace, pod.Name)
		}
		return fmt.Errorf("pod %s: its object is there, although the kubelet of %s does not see it yet; use kubectl delete pod -n %s %s", pod.key(), pod.Node, pod.Namespace, pod.Name)
	case pod.Object == objectPresent:
		return fmt.Errorf("pod %s: its object is still there; use kubectl delete pod -n %s %s, which works for held pods as for any other", pod.key(), pod.Namespace, pod.Name)
	case pod.Object == objectUnknown:
		return fmt.Errorf("pod %s: cannot tell whether its object is there: %s", pod.key(), pod.ObjectError)
	case len(pod.Holds) == 0:
		return fmt.Errorf("pod %s is not held by node %s; there is nothing to release", pod.key(), pod.Node)
	}
	return nil
}

// unknown is for a pod that no node that answers knows: a record can be written
// for later when its UID and name were given.
func (o *releaseOptions) unknown(ctx context.Context, c *clients, silent int) ([]knownPod, error) {
	if o.pod == "" {
		return nil, fmt.Errorf("no node that answers has a protected pod with UID %s; to write a record for later, give its name as well: kubectl guard release -n NAMESPACE NAME --uid %s", o.uid, o.uid)
	}
	pod := knownPod{PodState: guard.PodState{Namespace: c.namespace, Name: o.pod, UID: types.UID(o.uid)}}
	lookUpObject(ctx, c.kube, &pod)
	switch {
	case pod.Object == objectUnknown:
		return nil, releasable(pod)
	case pod.Object == objectPresent || pod.Object == objectReplaced && o.uid == "":
		return nil, fmt.Errorf("pod %s: its object is there, so it needs no release; use kubectl delete pod -n %s %s, with --force --grace-period=0 if its node is lost", pod.key(), pod.Namespace, pod.Name)
	case o.uid == "" && silent > 0:
		return nil, fmt.Errorf("no node that answers has a protected pod %s; if it ran on one that does not, give its --uid to write the record for later", pod.key())
	case o.uid == "":
		return nil, fmt.Errorf("no node has a protected pod %s; see kubectl guard holds -A", pod.key())
	case silent == 0:
		o.warn("every node that was asked answered, and none has a pod with UID %s; is the UID right?", o.uid)
	}
	return []knownPod{pod}, nil
}

// explain shows what will happen.
func (o *releaseOptions) explain(pods []knownPod) error {
	columns := []column{{name: "Namespace"}, {name: "Pod"}, {name: "Node"}, {name: "Cause"}, {name: "Since"}, {name: "Object"}, {name: "UID"}}
	var rows [][]any
	waiting, successors, gone := 0, 0, 0
	for _, pod := range pods {
		since, _ := holdTimes(pod.Holds)
		node := pod.Node
		if node == "" {
			node = "<unknown>"
			waiting++
		}
		cause := causesOf(pod.Holds, false)
		if cause == "" {
			cause = none
		}
		if pod.Object == objectReplaced {
			successors++
		} else {
			gone++
		}
		rows = append(rows, []any{pod.Namespace, pod.Name, node, cause, age(o.now(), since), string(pod.Object), string(pod.UID)})
	}
	if err := table(o.Out, false, columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	switch {
	case waiting > 0:
		fmt.Fprintln(o.Out, "No node that answers has this pod. The record waits for the node to come back.")
	case len(pods) == 1:
		fmt.Fprintln(o.Out, "The kubelet will terminate this pod with its own grace period. This cannot be undone.")
	default:
		fmt.Fprintf(o.Out, "The kubelet will terminate these %d pods with their own grace periods. This cannot be undone.\n", len(pods))
	}
	switch successors {
	case 0:
	case 1:
		fmt.Fprintln(o.Out, "The later pod of the same name stays untouched.")
	default:
		fmt.Fprintf(o.Out, "The %d later pods of the same names stay untouched.\n", successors)
	}
	if gone > 0 {
		fmt.Fprintln(o.Out, "Where no object is left, see that a replacement runs if one is needed.")
	}
	return nil
}

// release writes the records and waits for the kubelets.
func (o *releaseOptions) release(ctx context.Context, c *clients, pods []knownPod) error {
	spec := record.Spec{Reason: o.reason, RequestedBy: userName(ctx, c.kube)}
	if o.ttl > 0 {
		spec.Expires = record.Expiry(o.now(), o.ttl)
	}
	var (
		watches []*watchedRelease
		records []*record.PodDeletion
		errs    []error
	)
	for _, pod := range pods {
		spec.Namespace, spec.Name, spec.NodeName = pod.Namespace, pod.Name, pod.boundTo()
		podRecord := record.New(pod.UID, spec)
		records = append(records, podRecord)
		w := &watchedRelease{released: released{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Node, Record: "Created"}, start: o.now()}
		if o.dryRun != dryRunClient {
			created, err := c.records.Create(ctx, podRecord, o.dryRun == dryRunServer)
			if err != nil {
				errs = append(errs, fmt.Errorf("pod %s: %w", pod.key(), err))
				continue
			}
			if !created {
				w.Record = "Existed"
			}
		}
		o.say("pod/%s: record %s %s%s", pod.Name, pod.UID, map[string]string{"Created": "written", "Existed": "exists already"}[w.Record], o.dryRun.suffix())
		watches = append(watches, w)
	}
	if o.dryRun != dryRunNone {
		if !o.output.forPeople() && len(errs) == 0 {
			return o.printRecords(records)
		}
		return errors.Join(errs...)
	}
	if o.timeout > 0 {
		if err := o.await(ctx, c, watches); err != nil {
			errs = append(errs, err)
		}
	}
	if !o.output.forPeople() {
		list := releasedList{APIVersion: outputVersion, Kind: "ReleasedPodList", Items: []released{}}
		for _, w := range watches {
			list.Items = append(list.Items, w.released)
		}
		errs = append(errs, o.output.object(o.Out, &list))
	}
	return errors.Join(errs...)
}

// printRecords prints what would be written, ready for kubectl apply.
func (o *releaseOptions) printRecords(records []*record.PodDeletion) error {
	list := struct {
		APIVersion string           `json:"apiVersion"`
		Kind       string           `json:"kind"`
		Items      []map[string]any `json:"items"`
	}{APIVersion: "v1", Kind: "List"}
	for _, r := range records {
		object, err := record.Unstructured(r)
		if err != nil {
			return err
		}
		list.Items = append(list.Items, object.Object)
	}
	return o.output.object(o.Out, &list)
}

// say prints progress for people.
func (o *releaseOptions) say(format string, arguments ...any) {
	if o.output.forPeople() {
		fmt.Fprintf(o.Out, format+"\n", arguments...)
	}
}

// userName returns the name that the API server knows the user by, or nothing.
func userName(ctx context.Context, kube kubernetes.Interface) string {
	review, err := kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		// Not worth failing for: the audit log knows better.
		return ""
	}
	return review.Status.UserInfo.Username
}

// watchedRelease is a release whose effect is awaited.
type watchedRelease struct {
	released
	start time.Time
	// last is what the kubelet said last, for a wait that ends without success.
	last string
}

func (w *watchedRelease) key() string { return w.Namespace + "/" + w.Name }

// await asks the nodes concerned until all pods have ended, or the timeout.
func (o *releaseOptions) await(ctx context.Context, c *clients, watches []*watchedRelease) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	ticker := time.NewTicker(o.poll)
	defer ticker.Stop()
	for {
		open := map[string][]*watchedRelease{}
		for _, w := range watches {
			if w.Ended == nil && w.Node != "" {
				open[w.Node] = append(open[w.Node], w)
			}
		}
		if len(open) == 0 {
			return nil
		}
		var list []corev1.Node
		for name := range open {
			list = append(list, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
		answers := c.nodes.Ask(ctx, list)
		// An answer that the end of the wait cut off says nothing about the node.
		if ctx.Err() == nil {
			for _, answer := range answers {
				for _, w := range open[answer.Node.Name] {
					o.observe(w, answer)
				}
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return o.unfinished(ctx, watches)
		}
	}
}

// observe compares a release with what the kubelet says now.
func (o *releaseOptions) observe(w *watchedRelease, answer nodes.Answer) {
	if answer.Pods == nil {
		w.last = fmt.Sprintf("node %s: %s: %s", w.Node, answer.State, answer.Detail)
		return
	}
	elapsed := o.now().Sub(w.start)
	for _, pod := range answer.Pods.Items {
		if pod.UID != w.UID {
			continue
		}
		w.last = fmt.Sprintf("node %s: %s", w.Node, pod.State)
		if pod.Evidence != nil && w.Taken == nil {
			took := elapsed.Seconds()
			w.Taken = &took
			o.say("pod/%s: kubelet of %s took it after %s (%s)", w.Name, w.Node, seconds(elapsed), pod.Evidence.Kind)
		}
		return
	}
	took := elapsed.Seconds()
	w.Ended = &took
	if w.Taken == nil {
		// It ended between two questions.
		w.Taken = &took
	}
	o.say("pod/%s: gone from %s after %s", w.Name, w.Node, seconds(elapsed))
}

// unfinished says what had not happened when the wait ended.
func (o *releaseOptions) unfinished(ctx context.Context, watches []*watchedRelease) error {
	var errs []error
	for _, w := range watches {
		switch {
		case w.Ended != nil || w.Node == "":
		case w.Taken != nil:
			errs = append(errs, fmt.Errorf("pod %s has not ended within %s; its kubelet has the evidence and is terminating it (last seen: %s)", w.key(), o.timeout, w.last))
		default:
			errs = append(errs, fmt.Errorf("pod %s: its kubelet has not taken the record within %s (last seen: %s); the record stays and will be found. If not, see that nodes may get poddeletions (kubectl apply -k manifests/) and that their guard is of a release that looks for records", w.key(), o.timeout, w.last))
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		errs = append(errs, errors.New("interrupted; what was released stays released"))
	}
	return errors.Join(errs...)
}
