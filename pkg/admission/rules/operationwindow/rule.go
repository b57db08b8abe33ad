package operationwindow

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// kinds of the resources that windows are about, all of group apps.
var kinds = map[string]guardv1alpha1.WorkloadKind{
	"deployments":  guardv1alpha1.DeploymentWorkload,
	"statefulsets": guardv1alpha1.StatefulSetWorkload,
	"daemonsets":   guardv1alpha1.DaemonSetWorkload,
	"replicasets":  guardv1alpha1.ReplicaSetWorkload,
}

// Rule holds changes of workloads to the windows of their namespace. It is safe for
// concurrent use.
type Rule struct {
	cached, live client.Reader
	clock        clock.PassiveClock
}

// NewRule returns the rule. Windows come from a cache, since they are read for every
// change; workloads are read live, and only for /scale, whose object has no labels of
// its own.
func NewRule(cached, live client.Reader, clock clock.PassiveClock) *Rule {
	return &Rule{cached: cached, live: live, clock: clock}
}

// Review judges the request.
func (r *Rule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	kind, ok := kinds[request.Resource.Resource]
	if !ok || request.Resource.Group != "apps" || request.Operation != admissionv1.Update ||
		request.SubResource != "" && request.SubResource != "scale" {
		return admission.Allow()
	}
	if follows, err := request.FollowsDeployment(); err != nil {
		return admission.Fail("%w", err)
	} else if follows {
		return admission.Allow()
	}
	list := &guardv1alpha1.OperationWindowList{}
	if err := r.cached.List(ctx, list, client.InNamespace(request.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return admission.Fail("list the OperationWindows of namespace %s: %w", request.Namespace, err)
	}
	windows := make([]*Window, 0, len(list.Items))
	for i := range list.Items {
		windows = append(windows, Read(&list.Items[i]))
	}
	slices.SortFunc(windows, func(a, b *Window) int { return strings.Compare(a.Name, b.Name) })
	if !slices.ContainsFunc(windows, func(w *Window) bool { return w.mayBeAbout(kind) }) {
		return admission.Allow()
	}

	before, after := map[string]any{}, map[string]any{}
	if err := request.DecodeObjects(&before, &after); err != nil {
		return admission.Fail("%w", err)
	}
	changed := Diff(before, after)
	if len(changed) == 0 {
		return admission.Allow()
	}
	workload, err := r.workload(ctx, request, kind)
	if err != nil {
		return admission.Fail("%w", err)
	}
	selecting := slices.DeleteFunc(windows, func(w *Window) bool { return !w.Selects(string(kind), workload.Labels) })
	verdict := Decide(selecting, changed, r.clock.Now())
	if len(verdict.Refused) == 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonWindowClosed, verdict.Message(request.Target()),
		fmt.Sprintf("Repeat the change then, or see the windows: kubectl get operationwindows -n %s", request.Namespace))
}

// workload returns the metadata of the workload before the change.
func (r *Rule) workload(ctx context.Context, request *admission.Request, kind guardv1alpha1.WorkloadKind) (*metav1.PartialObjectMetadata, error) {
	if request.SubResource == "" {
		return request.OldMeta()
	}
	gvk := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: string(kind)}
	parent, err := admission.Metadata(ctx, r.live, gvk, request.Key())
	if err != nil {
		return nil, fmt.Errorf("get the %s whose replicas change: %w", kind, err)
	}
	request.SetParent(parent)
	return parent, nil
}

// mayBeAbout reports whether the window selects any workload of the kind.
func (w *Window) mayBeAbout(kind guardv1alpha1.WorkloadKind) bool {
	return len(w.kinds) == 0 || slices.Contains(w.kinds, kind)
}
