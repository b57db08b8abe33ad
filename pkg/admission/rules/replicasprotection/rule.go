package replicasprotection

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Confirmation is the range of replicas that an annotation confirms, ends included.
type Confirmation struct{ Min, Max int64 }

// confirmation is the form that the policies accept too: at most nine digits.
var confirmation = regexp.MustCompile(`^([0-9]{1,9})(?:-([0-9]{1,9}))?$`)

// ParseConfirmation reads the value of the annotation: a number, or two with a hyphen
// between.
func ParseConfirmation(value string) (Confirmation, error) {
	match := confirmation.FindStringSubmatch(value)
	if match == nil {
		return Confirmation{}, fmt.Errorf("%q is neither a number such as 3 nor a range such as 2-10", value)
	}
	// The expression lets nothing through that does not parse.
	low, _ := strconv.ParseInt(match[1], 10, 64)
	high := low
	if match[2] != "" {
		high, _ = strconv.ParseInt(match[2], 10, 64)
	}
	if low > high {
		return Confirmation{}, fmt.Errorf("%q is an empty range: %d is more than %d", value, low, high)
	}
	return Confirmation{Min: low, Max: high}, nil
}

// Holds reports whether the confirmation holds the number.
func (c Confirmation) Holds(replicas int64) bool { return c.Min <= replicas && replicas <= c.Max }

// Rule judges changes of replicas.
type Rule struct{ Scale Lookup }

// Review judges the request.
func (r Rule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation != admissionv1.Update || request.SubResource != "" {
		return admission.Allow()
	}
	meta, err := request.Meta()
	if err != nil {
		return admission.Fail("%w", err)
	}
	oldMeta, err := request.OldMeta()
	if err != nil {
		return admission.Fail("%w", err)
	}
	if !protected(meta, oldMeta) {
		return admission.Allow()
	}
	if follows, err := request.FollowsDeployment(); err != nil {
		return admission.Fail("%w", err)
	} else if follows {
		return admission.Allow()
	}
	paths, found, err := r.Scale.Paths(ctx, schema.GroupVersionResource(request.Resource))
	switch {
	case err != nil:
		return admission.Fail("find out where the kind has its replicas: %w", err)
	case !found:
		return admission.Allow()
	}
	var object, oldObject unstructured.Unstructured
	if err := request.DecodeObjects(&oldObject, &object); err != nil {
		return admission.Fail("%w", err)
	}
	from, err := paths.Desired(oldObject.Object)
	if err != nil {
		return admission.Fail("read the old replicas: %w", err)
	}
	to, err := paths.Desired(object.Object)
	if err != nil {
		return admission.Fail("read the new replicas: %w", err)
	}
	annotation, annotated := meta.Annotations[guardv1alpha1.ConfirmReplicasAnnotation]
	return decide(request, from, to, annotation, annotated)
}

// protected reports whether the label is on the old or the new object: to take it off
// in the same request does not help.
func protected(object, oldObject *metav1.PartialObjectMetadata) bool {
	if object == nil || oldObject == nil {
		return false
	}
	for _, o := range []*metav1.PartialObjectMetadata{object, oldObject} {
		if o.Labels[guardv1alpha1.ReplicasProtectionLabel] == guardv1alpha1.ReplicasProtectionConfirm {
			return true
		}
	}
	return false
}

// decide judges the change of a protected workload.
func decide(request *admission.Request, from, to int64, annotation string, annotated bool) admission.Decision {
	if from == to {
		return admission.Allow()
	}
	reason := admission.ReasonReplicasNotConfirmed
	var why string
	switch confirmation, err := ParseConfirmation(annotation); {
	case !annotated:
		why = "nothing confirms the change"
	case err != nil:
		reason = admission.ReasonMalformed
		why = fmt.Sprintf("the annotation %s cannot be read: %v", guardv1alpha1.ConfirmReplicasAnnotation, err)
	case confirmation.Holds(to):
		return admission.Allow()
	default:
		why = fmt.Sprintf("the annotation %s confirms %s", guardv1alpha1.ConfirmReplicasAnnotation, annotation)
	}
	return admission.Refuse(reason,
		fmt.Sprintf("the replicas of %s were not changed from %d to %d: it is labelled %s=%s and %s",
			request.Target(), from, to, guardv1alpha1.ReplicasProtectionLabel, guardv1alpha1.ReplicasProtectionConfirm, why),
		fmt.Sprintf(`Confirm the new number, or a range such as "2-10", and try again: kubectl annotate %s%s --overwrite %s=%d`,
			request.TargetArgument(), request.NamespaceFlag(), guardv1alpha1.ConfirmReplicasAnnotation, to))
}
