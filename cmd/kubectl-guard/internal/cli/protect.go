package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/resource"

	"kubelet-guard.io/cmd/kubectl-guard/internal/workload"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// guardedVersion is in the version of every guarded kubelet.
const guardedVersion = "+guard."

// change says what became of a pod's label. The zero value is invalid.
type change string

const (
	changeDone     change = "Changed"
	changeUnneeded change = "Unchanged"
	changeSkipped  change = "Skipped"
	changeFailed   change = "Failed"
	// changeDry: a dry run, of either kind, found nothing against it.
	changeDry change = "WouldChange"
)

// protectionChange is one item of the output of protect and unprotect.
type protectionChange struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Node      string    `json:"node,omitempty"`
	Change    change    `json:"change"`
	// Reason of Skipped and Failed.
	Reason string `json:"reason,omitempty"`
}

type protectionChangeList struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"`
	Items      []protectionChange `json:"items"`
}

type protectOptions struct {
	*settings
	output   *output
	dryRun   dryRun
	selector string
	yes      bool
	// override is why the label may go although a policy of the cluster keeps it on
	// running pods; overrideFor is how long that counts.
	override    string
	overrideFor time.Duration
	// protect: put the label on; otherwise take it off.
	protect bool
}

func newProtectCommand(s *settings) *cobra.Command {
	o := &protectOptions{settings: s, output: newOutput(), protect: true}
	return o.command(&cobra.Command{
		Use:   "protect (KIND/NAME... | KIND -l SELECTOR)",
		Short: "Label running pods for protection, in place",
		Long: `Label running pods for protection, in place.

Of a workload, its running pods are labelled, and never its pod template: nothing is
restarted. Pods that replace them later come without the label, unless the template
has it, too; the command says how to add it there.`,
		Example: `  kubectl guard protect deploy/web
  kubectl guard protect pod/web-0 statefulset/db --dry-run=server
  kubectl guard protect pods -l app=db`,
	})
}

func newUnprotectCommand(s *settings) *cobra.Command {
	o := &protectOptions{settings: s, output: newOutput()}
	return o.command(&cobra.Command{
		Use:   "unprotect (KIND/NAME... | KIND -l SELECTOR)",
		Short: "Remove the protection label from running pods, in place",
		Long: `Remove the protection label from running pods, in place.

A held pod loses its hold with the label: the kubelet does at once what it wanted to
do. The command asks before that.

Where the policies of the control plane are installed, the label stays on a running
pod unless --override gives a reason. It is written to the pod with an expiry, counted
and audited, and needs the verb override on the pod (kubectl auth can-i override
pods).`,
		Example: `  kubectl guard unprotect deploy/web
  kubectl guard unprotect pod/web-0 --dry-run=client
  kubectl guard unprotect pod/web-0 --override 'node pool is retired, ticket 17'`,
	})
}

func (o *protectOptions) command(command *cobra.Command) *cobra.Command {
	command.ValidArgsFunction = completeWorkloads(o.settings)
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if len(arguments) == 0 {
			return errors.New("which pods? give KIND/NAME, such as deploy/web or pod/web-0, or KIND with -l")
		}
		if err := o.output.check(); err != nil {
			return err
		}
		if err := o.checkOverride(command.Flags()); err != nil {
			return err
		}
		return o.run(command.Context(), arguments)
	}
	o.output.addFlags(command)
	o.dryRun.addFlag(command)
	command.Flags().StringVarP(&o.selector, "selector", "l", "", "Label selector, for a KIND without names")
	_ = command.RegisterFlagCompletionFunc("selector", cobra.NoFileCompletions)
	if !o.protect {
		command.Flags().BoolVarP(&o.yes, "yes", "y", false, "Do not ask about held pods")
		command.Flags().StringVar(&o.override, "override", "", "Reason to take the label off although a policy keeps it; written to the pod and to the audit log")
		command.Flags().DurationVar(&o.overrideFor, "override-for", defaultOverrideFor, "How long the override counts, for anything that is done to the pod")
	}
	return command
}

// defaultOverrideFor is enough for a retry and short enough not to be forgotten.
const defaultOverrideFor = 15 * time.Minute

// checkOverride reports an override that the webhook would not count.
func (o *protectOptions) checkOverride(flags *pflag.FlagSet) error {
	o.override = strings.TrimSpace(o.override)
	switch {
	case flags.Changed("override") && o.override == "":
		return errors.New("--override: give the reason, such as --override 'ticket 17'")
	case flags.Changed("override-for") && o.override == "":
		return errors.New("--override-for goes with --override REASON")
	case o.override != "" && o.overrideFor < time.Minute:
		return fmt.Errorf("--override-for: %s is less than a minute", o.overrideFor)
	}
	return nil
}

func (o *protectOptions) run(ctx context.Context, arguments []string) error {
	c, err := o.connect()
	if err != nil {
		return err
	}
	objects, err := o.read(c, arguments)
	if err != nil {
		return err
	}
	pods, workloads, err := o.pods(ctx, c, objects)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		return fmt.Errorf("%s has no pods", strings.Join(arguments, " "))
	}
	if !o.protect && !o.yes && o.dryRun == dryRunNone {
		if err := o.confirmHeld(ctx, pods); err != nil {
			return err
		}
	}
	if o.protect {
		o.warnUnguarded(ctx, c, pods)
	}
	list := protectionChangeList{APIVersion: outputVersion, Kind: "ProtectionChangeList", Items: []protectionChange{}}
	var errs []error
	for i := range pods {
		change, err := o.apply(ctx, c, &pods[i])
		list.Items = append(list.Items, change)
		if err != nil {
			errs = append(errs, err)
		}
		if o.output.forPeople() {
			o.report(change)
		}
	}
	if !o.output.forPeople() {
		return errors.Join(append(errs, o.output.object(o.Out, &list))...)
	}
	if len(errs) < len(pods) {
		o.adviseTemplates(workloads)
		o.adviseOwners(list.Items, pods, objects)
	}
	return errors.Join(errs...)
}

// read returns the objects that the arguments name.
func (o *protectOptions) read(c *clients, arguments []string) ([]*unstructured.Unstructured, error) {
	infos, err := resource.NewBuilder(o.flags).Unstructured().
		NamespaceParam(c.namespace).DefaultNamespace().
		ResourceTypeOrNameArgs(false, arguments...).
		LabelSelectorParam(o.selector).
		RequestChunksOf(500).
		Flatten().Do().Infos()
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, info := range infos {
		object, ok := info.Object.(*unstructured.Unstructured)
		if !ok || info.Namespace == "" {
			return nil, fmt.Errorf("%s: not a pod and not a workload in a namespace", info.ObjectName())
		}
		objects = append(objects, object)
	}
	return objects, nil
}

// pods returns each pod once, and which of the objects are workloads.
func (o *protectOptions) pods(ctx context.Context, c *clients, objects []*unstructured.Unstructured) ([]corev1.Pod, []*unstructured.Unstructured, error) {
	mapper, err := o.flags.ToRESTMapper()
	if err != nil {
		return nil, nil, err
	}
	finder := &workload.Finder{Client: c.kube, Metadata: c.metadata, Mapper: mapper}
	var (
		pods      []corev1.Pod
		workloads []*unstructured.Unstructured
		seen      = map[types.UID]bool{}
	)
	for _, object := range objects {
		var found []corev1.Pod
		if isPod(object) {
			var pod corev1.Pod
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &pod); err != nil {
				return nil, nil, fmt.Errorf("read pod %s: %w", object.GetName(), err)
			}
			found = []corev1.Pod{pod}
		} else {
			if found, err = finder.Pods(ctx, object); err != nil {
				return nil, nil, err
			}
			if len(found) == 0 {
				o.warn("%s has no pods", describe(object))
			}
			workloads = append(workloads, object)
		}
		for _, pod := range found {
			if !seen[pod.UID] {
				seen[pod.UID] = true
				pods = append(pods, pod)
			}
		}
	}
	return pods, workloads, nil
}

func isPod(object *unstructured.Unstructured) bool {
	return object.GroupVersionKind().GroupKind() == schema.GroupKind{Kind: "Pod"}
}

// describe is kind.group/name, as kubectl names objects.
func describe(object *unstructured.Unstructured) string {
	kind := strings.ToLower(object.GetKind())
	if group := object.GroupVersionKind().Group; group != "" {
		kind += "." + group
	}
	return kind + "/" + object.GetName()
}

// confirmHeld asks before the label of held pods is removed.
func (o *protectOptions) confirmHeld(ctx context.Context, pods []corev1.Pod) error {
	var held []string
	for i := range pods {
		if causes := heldBy(&pods[i]); causes != "" && pods[i].Labels[guard.ExplicitDeletionLabel] != "" {
			held = append(held, fmt.Sprintf("  %s/%s (%s)", pods[i].Namespace, pods[i].Name, causes))
		}
	}
	if len(held) == 0 {
		return nil
	}
	if !o.output.forPeople() {
		return fmt.Errorf("%s held, and without the label the kubelet stops what it wanted to stop; give --yes to go on:\n%s", areOrIs(len(held)), strings.Join(held, "\n"))
	}
	fmt.Fprintf(o.Out, "%s held. Without the label the kubelet does at once what it wanted to do:\n%s\n", areOrIs(len(held)), strings.Join(held, "\n"))
	return o.confirm(ctx, "Remove the label?")
}

func areOrIs(n int) string {
	if n == 1 {
		return "1 of the pods is"
	}
	return fmt.Sprintf("%d of the pods are", n)
}

// heldBy returns the cause in the pod's condition, or nothing when it is not held.
func heldBy(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == guard.PodKillRefused && condition.Status == corev1.ConditionTrue {
			return condition.Reason
		}
	}
	return ""
}

// warnUnguarded names the nodes on which the label protects from nothing.
func (o *protectOptions) warnUnguarded(ctx context.Context, c *clients, pods []corev1.Pod) {
	names := map[string]string{}
	for i := range pods {
		if node := pods[i].Spec.NodeName; node != "" {
			names[node] = ""
		}
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	sort.Strings(sorted)
	versions := make([]string, len(sorted))
	var group errgroup.Group
	group.SetLimit(lookups)
	for i, name := range sorted {
		group.Go(func() error {
			// The label goes on all the same, so an error leaves out a warning only.
			if node, err := c.kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); err == nil {
				versions[i] = node.Status.NodeInfo.KubeletVersion
			}
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	for i, version := range versions {
		if version != "" && !strings.Contains(version, guardedVersion) {
			o.warn("node %s runs kubelet %s, which has no guard: the label has no effect there", sorted[i], version)
		}
	}
}

// apply changes the label of one pod.
func (o *protectOptions) apply(ctx context.Context, c *clients, pod *corev1.Pod) (protectionChange, error) {
	result := protectionChange{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName}
	value, labelled := pod.Labels[guard.ExplicitDeletionLabel]
	switch {
	case o.protect && pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		result.Change, result.Reason = changeSkipped, "a static pod is never protected"
		return result, nil
	case o.protect && (pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed):
		result.Change, result.Reason = changeSkipped, fmt.Sprintf("it has ended (%s)", pod.Status.Phase)
		return result, nil
	case o.protect && value == guard.ExplicitDeletionRequired, !o.protect && !labelled:
		result.Change = changeUnneeded
		return result, nil
	case o.dryRun == dryRunClient:
		result.Change = changeDry
		return result, nil
	}
	var newValue any
	if o.protect {
		newValue = guard.ExplicitDeletionRequired
	}
	metadata := map[string]any{
		// A later pod of the same name is not meant.
		"uid":    pod.UID,
		"labels": map[string]any{guard.ExplicitDeletionLabel: newValue},
	}
	if o.override != "" {
		// In the same request: the override counts for the object as it will be.
		metadata["annotations"] = map[string]any{
			guardv1alpha1.OverrideAnnotation: guardv1alpha1.FormatOverride(o.now().Add(o.overrideFor), o.override),
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return result, err
	}
	options := metav1.PatchOptions{FieldManager: fieldManager}
	if o.dryRun == dryRunServer {
		options.DryRun = []string{metav1.DryRunAll}
	}
	if _, err := c.kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, options); err != nil {
		result.Change, result.Reason = changeFailed, err.Error()
		return result, fmt.Errorf("pod %s/%s: change its label: %w", pod.Namespace, pod.Name, err)
	}
	result.Change = changeDone
	if o.dryRun == dryRunServer {
		result.Change = changeDry
	}
	return result, nil
}

// report prints one line. Failures are errors, which are printed at the end.
func (o *protectOptions) report(change protectionChange) {
	done, undone := "protected", "already protected"
	if !o.protect {
		done, undone = "no longer protected", "was not protected"
	}
	switch change.Change {
	case changeDone, changeDry:
		fmt.Fprintf(o.Out, "pod/%s %s%s\n", change.Name, done, o.dryRun.suffix())
	case changeUnneeded:
		fmt.Fprintf(o.Out, "pod/%s %s\n", change.Name, undone)
	case changeSkipped:
		fmt.Fprintf(o.Out, "pod/%s skipped: %s\n", change.Name, change.Reason)
	}
}

// adviseTemplates says how to make the change permanent.
func (o *protectOptions) adviseTemplates(workloads []*unstructured.Unstructured) {
	for _, object := range workloads {
		set, path, ok := workload.TemplateLabels(object)
		_, labelled := set[guard.ExplicitDeletionLabel]
		name := describe(object)
		switch {
		case !ok:
			fmt.Fprintf(o.Out, "\n%s has no pod template that is known here. Pods that replace these are labelled as it says.\n", name)
		case o.protect && set[guard.ExplicitDeletionLabel] != guard.ExplicitDeletionRequired:
			fmt.Fprintf(o.Out, "\nPods that replace these come without the label. To make it permanent, add it to\n%s of %s:\n\n%s\n",
				strings.Join(path, "."), name, howTo(object, path, guard.ExplicitDeletionRequired))
		case !o.protect && labelled:
			fmt.Fprintf(o.Out, "\nPods that replace these come with the label. To make the change permanent, remove it from\n%s of %s:\n\n%s\n",
				strings.Join(path, "."), name, howTo(object, path, nil))
		}
	}
}

// howTo is a command that changes the template, with what comes of it.
func howTo(object *unstructured.Unstructured, path []string, value any) string {
	if owner := metav1.GetControllerOf(object); owner != nil {
		return fmt.Sprintf("It is controlled by %s %s: change the template there.", owner.Kind, owner.Name)
	}
	var patch any = map[string]any{guard.ExplicitDeletionLabel: value}
	for i := len(path) - 1; i >= 0; i-- {
		patch = map[string]any{path[i]: patch}
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return err.Error()
	}
	kind := object.GroupVersionKind()
	// Quoted for a shell, so that the line can be copied.
	command := fmt.Sprintf("  kubectl patch -n %s %s --type=merge \\\n    -p '%s'\n\n", object.GetNamespace(), describe(object), text)
	strategy, _, _ := unstructured.NestedString(object.Object, "spec", "updateStrategy", "type")
	switch {
	case kind.Kind == "Job" && kind.Group == "batch":
		return "The template of a Job cannot be changed: set the label where the Job is made."
	case kind.Kind == "CronJob" && kind.Group == "batch":
		return command + "Jobs that run are not touched; the next ones take it."
	case strategy == "OnDelete", kind.Kind == "ReplicaSet" && kind.Group == "apps", kind.Kind == "ReplicationController":
		return command + "Running pods are not touched; those that replace them take it."
	case kind.Group == "apps":
		return command + "This starts a roll-out: it replaces the running pods by its usual rules."
	}
	return command + "It is up to the workload's controller whether this replaces the running pods."
}

// adviseOwners is for pods that were named themselves and have a controller.
func (o *protectOptions) adviseOwners(changes []protectionChange, pods []corev1.Pod, objects []*unstructured.Unstructured) {
	named := map[types.UID]bool{}
	for _, object := range objects {
		if isPod(object) {
			named[object.GetUID()] = true
		}
	}
	told := map[types.UID]bool{}
	for i := range pods {
		owner := metav1.GetControllerOf(&pods[i])
		changed := changes[i].Change == changeDone || changes[i].Change == changeDry
		if !changed || !named[pods[i].UID] || owner == nil || told[owner.UID] {
			continue
		}
		told[owner.UID] = true
		fmt.Fprintf(o.Out, "\nPods that %s %s makes later are labelled as its pod template says, not as these.\n", owner.Kind, owner.Name)
	}
}

// resourceOf resolves what people call a kind, short names included.
func resourceOf(mapper meta.RESTMapper, kind string) (schema.GroupVersionResource, error) {
	partial, group := schema.ParseResourceArg(kind)
	if partial != nil {
		if resource, err := mapper.ResourceFor(*partial); err == nil {
			return resource, nil
		}
	}
	return mapper.ResourceFor(group.WithVersion(""))
}
