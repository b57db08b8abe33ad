package restore

import (
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// leftOut are the kinds that are not restored by default, by group and kind, with the reason.
var leftOut = map[string]string{
	"/Pod":                            "its controller makes a new one; a guarded node that saw the deletion does not keep it",
	"/Endpoints":                      "its controller makes a new one",
	"discovery.k8s.io/EndpointSlice":  "its controller makes a new one",
	"events.k8s.io/Event":             "it expires",
	"/Event":                          "it expires",
	"coordination.k8s.io/Lease":       "its holder makes a new one",
	"storage.k8s.io/VolumeAttachment": "its controller makes a new one",
	// The API server removes one that it sees before its Service, if it is older than a minute
	// (pkg/registry/core/service/ipallocator/controller/repairip.go), and makes it for a Service
	// without.
	"networking.k8s.io/IPAddress": "the API server makes a new one for its Service",
}

// leaveOut marks the kinds that are left out, and what only they own: without an owner the
// garbage collector deletes it.
func (p *Plan) leaveOut(include []string) {
	out := map[types.UID]*Item{}
	for _, item := range p.Items {
		reason, isLeftOut := leftOut[item.object.Group+"/"+item.Kind]
		if item.value != nil && item.value.Lease != 0 {
			// Written without its lease it would never expire.
			item.leaveOut(out, "it has a lease of etcd, which has ended")
		} else if isLeftOut && !included(item, include) {
			item.leaveOut(out, reason+"; --include="+strings.ToLower(item.Kind)+" restores it")
		}
	}
	p.leaveOutOwned(out)
}

// leaveOutOwned leaves out what only those left out own, transitively.
func (p *Plan) leaveOutOwned(out map[types.UID]*Item) {
	for again := true; again; {
		again = false
		for _, item := range p.Items {
			if owner := onlyOwner(item, out); owner != nil && item.Action != LeaveOut && item.Action != Present {
				item.leaveOut(out, fmt.Sprintf("its owner %s is left out", owner))
				again = true
			}
		}
	}
}

func (i *Item) leaveOut(out map[types.UID]*Item, reason string) {
	if i.Action != Present {
		i.Action, i.Reason = LeaveOut, reason
		out[i.object.UID] = i
	}
}

// onlyOwner returns an owner if all owners of the item are left out.
func onlyOwner(item *Item, out map[types.UID]*Item) (owner *Item) {
	for _, reference := range item.object.Owners {
		if out[reference.UID] == nil {
			return nil
		}
		owner = out[reference.UID]
	}
	return owner
}

func included(item *Item, include []string) bool {
	plural, singular := meta.UnsafeGuessKindToResource(item.object.GroupVersionKind)
	return slices.ContainsFunc(include, func(kind string) bool {
		kind = strings.ToLower(kind)
		if long, short := shortNames[kind]; short {
			kind = long
		}
		return kind == singular.Resource || kind == plural.Resource
	})
}

// markActing says of each object whether it acts as soon as it is back, and leaves it out or
// refuses it unless acting objects are to be restored.
func (p *Plan) markActing(choice Acting) {
	out := map[types.UID]*Item{}
	for _, item := range p.Items {
		if !item.written() {
			continue
		}
		if item.Acts = acts(item); item.Acts == "" {
			continue
		}
		switch choice {
		case ActingRestore:
		case ActingLeaveOut:
			item.leaveOut(out, "it acts by itself: "+item.Acts)
		default:
			item.refuse("it acts as soon as it is back (%s); choose --acting=restore or --acting=leave-out", item.Acts)
		}
	}
	p.leaveOutOwned(out)
}

// acts says what an object does as soon as it is back, beyond what its deletion ended: it runs
// something a second time, blocks requests, or is valid as a credential or as a permission to kill.
func acts(item *Item) string {
	switch o := item.object.Typed.(type) {
	case *batchv1.Job:
		for _, condition := range o.Status.Conditions {
			if (condition.Type == batchv1.JobComplete || condition.Type == batchv1.JobFailed) && condition.Status == corev1.ConditionTrue {
				return ""
			}
		}
		if o.Spec.Suspend != nil && *o.Spec.Suspend {
			return ""
		}
		return "an unfinished Job runs again"
	case *batchv1.CronJob:
		if o.Spec.Suspend != nil && *o.Spec.Suspend {
			return ""
		}
		return "it starts Jobs, also those that were missed"
	case *admissionregistrationv1.ValidatingWebhookConfiguration, *admissionregistrationv1.MutatingWebhookConfiguration:
		return "requests are sent to its webhooks, and refused if those do not respond"
	case *admissionregistrationv1.ValidatingAdmissionPolicyBinding, *admissionregistrationv1.MutatingAdmissionPolicyBinding:
		return "its policy judges requests"
	case *apiregistrationv1.APIService:
		if o.Spec.Service == nil {
			return ""
		}
		return "its API is served by another server, or by none"
	case *corev1.Secret:
		if o.Type == corev1.SecretTypeServiceAccountToken {
			return "its token is valid again"
		}
	}
	// Other versions of the kinds above, and kinds of this project.
	switch item.object.Group + "/" + item.Kind {
	case "batch/Job", "batch/CronJob":
		return "it runs Jobs"
	case guardv1alpha1.GroupName + "/PodDeletion":
		return "a kubelet may end the pod that it names"
	case guardv1alpha1.GroupName + "/NodeDeletionPolicy":
		return "its record of past node deletions is old, so that it permits more"
	}
	if item.object.Group == "admissionregistration.k8s.io" && (strings.HasSuffix(item.Kind, "Configuration") || strings.HasSuffix(item.Kind, "Binding")) {
		return "it judges requests"
	}
	return ""
}
