package release

import (
	"context"
	"errors"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
)

// release writes the records and waits for the kubelets.
func (o *options) release(ctx context.Context, c *factory.Clients, pods []pods.Pod) error {
	spec := record.Spec{Reason: o.reason, RequestedBy: userName(ctx, c.Kube)}
	if o.ttl > 0 {
		spec.Expires = record.Expiry(o.Now(), o.ttl)
	}
	var (
		watches []*watchedRelease
		records []*record.PodDeletion
		errs    []error
	)
	for _, pod := range pods {
		spec.Namespace, spec.Name, spec.NodeName = pod.Namespace, pod.Name, pod.BoundTo()
		podRecord := record.New(pod.UID, spec)
		records = append(records, podRecord)
		w := &watchedRelease{released: released{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Node, Record: "Created"}, start: o.Now()}
		if o.dryRun != dryrun.Client {
			created, err := c.Records.Create(ctx, podRecord, o.dryRun == dryrun.Server)
			if err != nil {
				errs = append(errs, fmt.Errorf("pod %s: %w", pod.Key(), err))
				continue
			}
			if !created {
				w.Record = "Existed"
			}
		}
		o.print("pod/%s: record %s %s%s", pod.Name, pod.UID, map[string]string{"Created": "written", "Existed": "exists already"}[w.Record], o.dryRun.Suffix())
		watches = append(watches, w)
	}
	if o.dryRun != dryrun.None {
		if !o.output.HumanReadable() && len(errs) == 0 {
			return printer.PrintList(o.output, o.Out, records) // ready for kubectl apply
		}
		return errors.Join(errs...)
	}
	if o.timeout > 0 {
		if err := o.await(ctx, c, watches); err != nil {
			errs = append(errs, err)
		}
	}
	if !o.output.HumanReadable() {
		list := printer.NewList[released]("PodReleaseList")
		for _, w := range watches {
			list.Items = append(list.Items, w.released)
		}
		errs = append(errs, o.output.PrintObject(o.Out, &list))
	}
	return errors.Join(errs...)
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
