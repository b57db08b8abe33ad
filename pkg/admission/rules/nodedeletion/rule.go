package nodedeletion

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// chargeTimeout bounds the wait for other charges. It is shorter than the time-out
	// of the webhook entry: a flood of deletions has to be refused here, since the API
	// server lets deletions of unlabelled nodes pass that get no response in time.
	chargeTimeout = 3 * time.Second
	// refundTimeout bounds a refund, for which the request's own time may be over.
	refundTimeout = 3 * time.Second
)

// conflictRetries bounds the attempts of one charge, with pauses that differ between
// replicas. Within a replica charges wait for each other, so a conflict needs another
// replica or the status controller.
var conflictRetries = wait.Backoff{Duration: 10 * time.Millisecond, Factor: 1, Jitter: 2, Steps: 10}

// Ledgers reads policies live and writes their status. It is an interface for tests: theirs has
// other writers between a read and a write.
type Ledgers interface {
	Get(ctx context.Context, name string) (*guardv1alpha1.NodeDeletionPolicy, error)
	// UpdateStatus fails with a conflict when the policy has changed since it was
	// read.
	UpdateStatus(ctx context.Context, policy *guardv1alpha1.NodeDeletionPolicy) error
}

// Rule holds deletions of nodes to the policies that select them. It is safe for
// concurrent use.
type Rule struct {
	// policies are read from a cache.
	policies client.Reader
	nodes    *Index
	ledgers  Ledgers
	mode     admission.Mode
	clock    clock.Clock
	// charging has room for the one request that charges.
	charging chan struct{}
	// charges counts those of this process.
	charges atomic.Int64
}

// NewRule returns the rule. The mode is that in which its decisions are used: what it writes
// into a status may not make the API server refuse anything in audit mode.
func NewRule(policies client.Reader, nodes *Index, ledgers Ledgers, mode admission.Mode, clock clock.Clock) *Rule {
	return &Rule{policies: policies, nodes: nodes, ledgers: ledgers, mode: mode, clock: clock, charging: make(chan struct{}, 1)}
}

// Review judges the request. It first judges all policies and then charges
// them, so that a charge has to be refunded only when another request was faster in
// between.
func (r *Rule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation != admissionv1.Delete || request.Resource.Group != "" ||
		request.Resource.Resource != "nodes" || request.SubResource != "" {
		return admission.Allow()
	}
	object := &corev1.Node{}
	if err := request.DecodeOldObject(object); err != nil {
		return admission.Fail("%w", err)
	}
	node := NodeOf(object)
	if node.Terminating {
		return admission.Allow()
	}
	policies, err := r.selecting(ctx, node)
	if err != nil {
		return admission.Fail("list the NodeDeletionPolicies: %w", err)
	}
	judged := judgements{charges: r.charges.Load(), policies: map[string]*guardv1alpha1.NodeDeletionPolicy{}}
	for _, policy := range policies {
		live, refusal, err := r.judge(ctx, policy, node)
		if err != nil {
			return admission.Fail("NodeDeletionPolicy %s: %w", policy, err)
		}
		if refusal != nil {
			return refuse(request, policy, refusal)
		}
		judged.policies[policy] = live
	}
	if len(policies) == 0 || request.IsDryRun() {
		return admission.Allow()
	}
	return r.charge(ctx, request, policies, judged, node)
}

// judgements are policies that have let a node go, as judge returned them, when so many charges
// had been made. They are good for a charge as long as that is the number.
type judgements struct {
	policies map[string]*guardv1alpha1.NodeDeletionPolicy
	charges  int64
}

// selecting returns the names of the policies that select the node, ordered.
func (r *Rule) selecting(ctx context.Context, node Node) ([]string, error) {
	policies, err := listPolicies(ctx, r.policies)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range policies {
		if selector, err := metav1.LabelSelectorAsSelector(&policies[i].Spec.NodeSelector); err == nil && selector.Matches(labels.Set(node.Labels)) {
			names = append(names, policies[i].Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// judge reads a policy live and judges the node by it. The policy is nil when it is gone, or does
// not select the node any more.
func (r *Rule) judge(ctx context.Context, name string, node Node) (*guardv1alpha1.NodeDeletionPolicy, *Refusal, error) {
	policy, err := r.ledgers.Get(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, fmt.Errorf("get: %w", err)
	}
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.NodeSelector)
	if err != nil || !selector.Matches(labels.Set(node.Labels)) {
		return nil, nil, nil
	}
	if errs := ValidateNodeDeletionPolicy(policy, nil); len(errs) > 0 {
		return policy, &Refusal{Reason: admission.ReasonMalformed,
			Message: fmt.Sprintf("NodeDeletionPolicy %s is not valid and so lets no node of its pool be deleted (%v)", name, errs.ToAggregate())}, nil
	}
	now := r.clock.Now()
	// In a flood of deletions most are refused by the limit, for which no pool is needed.
	if refusal := Measure(policy, nil, now).Judge(name, node, now); refusal != nil && refusal.Reason == admission.ReasonNodeLimit {
		return policy, refusal, nil
	}
	nodes, err := r.nodes.List(selector)
	if err != nil {
		return nil, nil, fmt.Errorf("list the nodes of its pool: %w", err)
	}
	return policy, Measure(policy, nodes, now).Judge(name, node, now), nil
}

// charge writes the deletion into the ledgers of all policies, or of none.
func (r *Rule) charge(ctx context.Context, request *admission.Request, policies []string, judged judgements, node Node) admission.Decision {
	waiting, cancel := context.WithTimeout(ctx, chargeTimeout)
	defer cancel()
	select {
	case r.charging <- struct{}{}:
		defer func() { <-r.charging }()
	case <-waiting.Done():
		return refuse(request, policies[0], tooMany(policies[0]))
	}
	if judged.charges != r.charges.Load() {
		judged.policies = nil
	}
	var done []string
	for _, policy := range policies {
		written, refusal, err := r.chargeOne(ctx, policy, judged.policies, node, request.UserInfo.Username)
		if err == nil && refusal == nil {
			if written {
				done = append(done, policy)
			}
			continue
		}
		left := r.refund(ctx, done, node)
		if err != nil {
			return admission.Fail("NodeDeletionPolicy %s: %w", policy, errors.Join(err, left))
		}
		decision := refuse(request, policy, refusal)
		if left != nil {
			decision = decision.Warn("the deletion was refused but counts: %v", left)
		}
		return decision
	}
	decision := admission.Allow()
	if len(done) > 0 {
		decision = decision.Annotate("charged", strings.Join(done, ","))
	}
	return decision
}

// chargeOne writes the deletion into one ledger, and reports whether it did: not
// when it is in there already, nor when the policy does not select the node any more. A
// policy that was judged is judged again when the write shows that it has changed.
func (r *Rule) chargeOne(ctx context.Context, name string, judged map[string]*guardv1alpha1.NodeDeletionPolicy, node Node, user string) (written bool, refusal *Refusal, failure error) {
	policy, known := judged[name]
	err := wait.ExponentialBackoffWithContext(ctx, conflictRetries, func(ctx context.Context) (done bool, _ error) {
		if !known {
			if policy, refusal, failure = r.judge(ctx, name, node); failure != nil || refusal != nil {
				return true, nil
			}
		}
		known = false
		now := r.clock.Now()
		if policy == nil || !record(policy, node, user, now) {
			return true, nil
		}
		count(policy, r.mode, now)
		err := r.ledgers.UpdateStatus(ctx, policy)
		switch {
		case apierrors.IsConflict(err):
			return false, nil
		case err != nil:
			// Whether an error without a response was a write is not known. If it was,
			// the deletion is in the ledger, and the next attempt of the client is free.
			failure = fmt.Errorf("write the deletion into its status: %w", err)
			return true, nil
		}
		r.charges.Add(1)
		written = true
		return true, nil
	})
	switch {
	case err == nil:
		return written, refusal, failure
	case ctx.Err() != nil:
		return false, nil, ctx.Err()
	}
	return false, tooMany(name), nil
}

// tooMany refuses a deletion that could not be written down for want of time.
func tooMany(policy string) *Refusal {
	return &Refusal{Reason: admission.ReasonNodeLimit,
		Message: fmt.Sprintf("so many nodes are being deleted at once that NodeDeletionPolicy %s cannot count them in time. Try again one by one", policy)}
}

// refund reverses the charges. The error names those that could not be.
func (r *Rule) refund(ctx context.Context, policies []string, node Node) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refundTimeout)
	defer cancel()
	var errs []error
	for _, policy := range policies {
		if err := r.refundOne(ctx, policy, node); err != nil {
			errs = append(errs, fmt.Errorf("NodeDeletionPolicy %s counts node %s until its period is over: %w", policy, node.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (r *Rule) refundOne(ctx context.Context, name string, node Node) error {
	retries := conflictRetries
	retries.Steps = math.MaxInt // the context bounds them
	return wait.ExponentialBackoffWithContext(ctx, retries, func(ctx context.Context) (done bool, _ error) {
		policy, err := r.ledgers.Get(ctx, name)
		if err != nil {
			return true, client.IgnoreNotFound(err)
		}
		deletions, changed := Refund(policy.Status.Deletions, node.UID)
		if !changed {
			return true, nil
		}
		policy.Status.Deletions = deletions
		count(policy, r.mode, r.clock.Now())
		if err := r.ledgers.UpdateStatus(ctx, policy); !apierrors.IsConflict(err) {
			return true, client.IgnoreNotFound(err)
		}
		return false, nil
	})
}

func refuse(request *admission.Request, policy string, refusal *Refusal) admission.Decision {
	step := fmt.Sprintf("See what counts: kubectl get nodedeletionpolicy %s -o yaml", policy)
	switch {
	case refusal.Step != "":
		step = refusal.Step
	case !refusal.Next.IsZero():
		step = fmt.Sprintf("Repeat the deletion then, or see what counts: kubectl get nodedeletionpolicy %s -o yaml", policy)
	}
	return admission.Refuse(refusal.Reason, request.Target()+" may not be deleted now: "+refusal.Message, step)
}

// listPolicies returns all policies of a cache, which must not be changed.
func listPolicies(ctx context.Context, cache client.Reader) ([]guardv1alpha1.NodeDeletionPolicy, error) {
	list := &guardv1alpha1.NodeDeletionPolicyList{}
	if err := cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	return list.Items, nil
}
