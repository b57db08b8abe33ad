package deletionprotection

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// label returns the value of the label on an object that is still whole, "" when the
// rule does not apply.
func label(object *metav1.PartialObjectMetadata) string {
	if object == nil || object.DeletionTimestamp != nil {
		return ""
	}
	return object.Labels[guardv1alpha1.DeletionProtectionLabel]
}

// refuse returns the refusal of the deletion: the object was labelled so, and why
// that counts now.
func refuse(request *admission.Request, reason admission.Reason, value, why, next string) admission.Decision {
	return admission.Refuse(reason, fmt.Sprintf("%s was not deleted: it is labelled %s=%s%s",
		request.Target(), guardv1alpha1.DeletionProtectionLabel, value, why), next)
}

// decideAlways judges the deletion of an object labelled "always".
func decideAlways(request *admission.Request) admission.Decision {
	return refuse(request, admission.ReasonDeletionProtected, guardv1alpha1.DeletionProtectionAlways, "",
		"If it is really to go, take the label off first: "+unlabel(request))
}

// decideUnknown judges the deletion of an object labelled "cascading" whose kind is
// not known to have dependents.
func decideUnknown(request *admission.Request) admission.Decision {
	return refuse(request, admission.ReasonDeletionProtected, guardv1alpha1.DeletionProtectionCascading,
		", and what depends on an object of this kind cannot be found out",
		"If nothing does, take the label off first: "+unlabel(request))
}

func unlabel(request *admission.Request) string {
	return fmt.Sprintf("kubectl label %s%s %s-", request.TargetArgument(), request.NamespaceFlag(), guardv1alpha1.DeletionProtectionLabel)
}

// decideNamespace judges the deletion of a namespace with these pods and bound
// claims.
func decideNamespace(request *admission.Request, pods, claims admission.Found) admission.Decision {
	var contents []string
	if pods.Count > 0 {
		contents = append(contents, "pods: "+pods.String())
	}
	if claims.Count > 0 {
		contents = append(contents, "bound persistent volume claims: "+claims.String())
	}
	if len(contents) == 0 {
		return admission.Allow()
	}
	return refuse(request, admission.ReasonDependentsExist, guardv1alpha1.DeletionProtectionCascading,
		" and is not empty ("+strings.Join(contents, ", ")+")",
		fmt.Sprintf("List them (kubectl get pods,persistentvolumeclaims -n %s), delete what is to go, and delete the namespace when it has none left", request.Key().Name))
}

// decideDefinition judges the deletion of a definition with these custom resources.
func decideDefinition(request *admission.Request, resource schema.GroupResource, instances admission.Found) admission.Decision {
	if instances.Count == 0 {
		return admission.Allow()
	}
	return refuse(request, admission.ReasonDependentsExist, guardv1alpha1.DeletionProtectionCascading,
		" and its deletion would delete its custom resources: "+instances.String(),
		fmt.Sprintf("List them (kubectl get %s -A), delete them if they are to go, and delete the definition when none is left", resource))
}

// decideUnlisted judges the deletion of a definition whose custom resources the webhook has
// no right to list.
func decideUnlisted(request *admission.Request, resource schema.GroupResource) admission.Decision {
	return refuse(request, admission.ReasonDependentsUnknown, guardv1alpha1.DeletionProtectionCascading,
		", and the webhook may not list its custom resources", letList(resource))
}

// letList returns how to give the webhook the right to list the custom resources.
func letList(resource schema.GroupResource) string {
	role := "kubelet-guard-webhook-" + resource.String()
	return fmt.Sprintf("Let it list them, and try again: kubectl create clusterrole %s --verb=list --resource=%s && kubectl label clusterrole %s %s=true",
		role, resource, role, guardv1alpha1.AggregateToWebhookLabel)
}

// decideLabelledInstances judges the deletion of a definition of which these custom
// resources are labelled.
func decideLabelledInstances(request *admission.Request, resource schema.GroupResource, labelled admission.Found) admission.Decision {
	if labelled.Count == 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonDependentsExist,
		fmt.Sprintf("%s was not deleted: that would delete custom resources labelled %s: %s", request.Target(), guardv1alpha1.DeletionProtectionLabel, labelled),
		fmt.Sprintf("List them (kubectl get %s -A -l %s), and take the label off those that are to go", resource, guardv1alpha1.DeletionProtectionLabel))
}

// decideClaim judges the deletion of a claim that these pods mount.
func decideClaim(request *admission.Request, pods admission.Found) admission.Decision {
	if pods.Count == 0 {
		return admission.Allow()
	}
	return refuse(request, admission.ReasonDependentsExist, guardv1alpha1.DeletionProtectionCascading,
		" and is mounted by pods: "+pods.String(),
		fmt.Sprintf("Stop the pods first (kubectl describe %s%s lists them as Used By)", request.TargetArgument(), request.NamespaceFlag()))
}

// decideService judges the deletion of a service with these endpoints.
func decideService(request *admission.Request, endpoints admission.Found) admission.Decision {
	if endpoints.Count == 0 {
		return admission.Allow()
	}
	return refuse(request, admission.ReasonDependentsExist, guardv1alpha1.DeletionProtectionCascading,
		" and still sends traffic to ready endpoints: "+endpoints.String(),
		fmt.Sprintf("Stop what it serves first (kubectl get endpointslices%s -l kubernetes.io/service-name=%s)", request.NamespaceFlag(), request.Key().Name))
}

// workload is what the rule reads of an object that runs pods.
type workload struct {
	// Desired is the number of replicas in the spec, 0 for a kind without them.
	Desired int64
	// Running is the number of pods in the status.
	Running int64
	// Observed: the status is not older than the spec.
	Observed bool
	// Stop is a sentence with the way to have it without pods, for kinds without
	// replicas.
	Stop string
}

// decideWorkload judges the deletion of a workload.
func decideWorkload(request *admission.Request, w workload) admission.Decision {
	wait := fmt.Sprintf("Wait until none is left (kubectl get %s%s --watch), then delete it", request.TargetArgument(), request.NamespaceFlag())
	if w.Stop != "" {
		wait = w.Stop + ". " + wait
	}
	because := func(why, next string) admission.Decision {
		return refuse(request, admission.ReasonReplicasNotZero, guardv1alpha1.DeletionProtectionCascading, why, next)
	}
	switch {
	case w.Desired != 0:
		return because(fmt.Sprintf(" and spec.replicas is %d", w.Desired), "Scale it to zero first: "+scaleToZero(request))
	case !w.Observed:
		return because(" and its controller has not seen its last change yet", wait)
	case w.Running != 0:
		return because(fmt.Sprintf(" and still runs (pods: %d)", w.Running), wait)
	}
	return admission.Allow()
}

// scaleToZero returns the commands; replicas that are protected themselves need one
// more.
func scaleToZero(request *admission.Request) string {
	scale := fmt.Sprintf("kubectl scale %s%s --replicas=0", request.TargetArgument(), request.NamespaceFlag())
	meta, err := request.OldMeta()
	if err != nil || meta == nil || meta.Labels[guardv1alpha1.ReplicasProtectionLabel] != guardv1alpha1.ReplicasProtectionConfirm {
		return scale
	}
	return fmt.Sprintf("kubectl annotate %s%s --overwrite %s=0 && %s", request.TargetArgument(), request.NamespaceFlag(), guardv1alpha1.ConfirmReplicasAnnotation, scale)
}
