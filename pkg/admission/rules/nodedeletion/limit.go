package nodedeletion

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// DefaultPeriod is that of a policy that gives none.
const DefaultPeriod = time.Hour

// ledgerSize is how many deletions the status of a policy can hold.
const ledgerSize = 1000

const (
	// clockTolerance is by how much the clocks of replicas may differ. A deletion that was
	// written with a time further ahead counts from the time at which that is noticed.
	clockTolerance = time.Minute
	// pruneMargin is how long a deletion that counts no longer stays in the ledger, so that
	// a replica whose clock is ahead does not take it from the others.
	pruneMargin = 2 * clockTolerance
)

// Node is what the rule knows of a node.
type Node struct {
	Name   string
	UID    types.UID
	Labels map[string]string
	Ready  bool
	// Reported is true once it was reported whether the node is ready.
	Reported bool
	// Terminating is true once the deletion of the object was requested.
	Terminating bool
}

// NodeOf returns what counts of the node.
func NodeOf(node *corev1.Node) Node {
	n := Node{Name: node.Name, UID: node.UID, Labels: node.Labels, Terminating: node.DeletionTimestamp != nil}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			n.Ready, n.Reported = condition.Status == corev1.ConditionTrue, true
		}
	}
	return n
}

// Pool are the nodes of a policy, with those that were deleted in its period.
type Pool struct {
	// Nodes that are there and stay.
	Nodes int
	// Ready of them.
	Ready int
	// Deleted in the period, also those that a cache still shows.
	Deleted int
}

// Usage is the state of a policy at a time.
type Usage struct {
	// Deletions that count, in the order of their time.
	Deletions []guardv1alpha1.NodeDeletion
	Pool      Pool
	// Max deletions in the period, -1 for any number.
	Max int
	// Floor of ready nodes.
	Floor  int
	Period time.Duration

	minReady intstr.IntOrString
}

// uidSets are for use again: a flood of deletions would leave one as garbage each.
var uidSets = sync.Pool{New: func() any { return map[types.UID]struct{}{} }}

// Measure returns the state of the policy at the time. nodes are those that its
// selector selects.
func Measure(policy *guardv1alpha1.NodeDeletionPolicy, nodes []Node, now time.Time) Usage {
	usage := Usage{Period: periodOf(&policy.Spec), Max: -1}
	usage.Deletions = within(policy.Status.Deletions, usage.Period, now)
	usage.Pool.Deleted = len(usage.Deletions)
	gone := uidSets.Get().(map[types.UID]struct{})
	defer func() {
		clear(gone)
		uidSets.Put(gone)
	}()
	if len(nodes) > 0 {
		for i := range usage.Deletions {
			gone[usage.Deletions[i].UID] = struct{}{}
		}
	}
	for i := range nodes {
		node := &nodes[i]
		_, isGone := gone[node.UID]
		switch {
		case isGone:
		case node.Terminating:
			// Requested before the policy was there.
			usage.Pool.Deleted++
		default:
			usage.Pool.Nodes++
			if node.Ready {
				usage.Pool.Ready++
			}
		}
	}
	if policy.Spec.MaxDeletions != nil {
		usage.Max = int(*policy.Spec.MaxDeletions)
	}
	if policy.Spec.MinReady != nil {
		// Of the pool before the deletions: a share of what is left would follow every
		// deletion downwards and hold nothing.
		usage.minReady = *policy.Spec.MinReady
		usage.Floor, _ = floorOf(*policy.Spec.MinReady, usage.Pool.Nodes+usage.Pool.Deleted)
	}
	return usage
}

// Refusal is why a policy does not let a node go.
type Refusal struct {
	Reason  admission.Reason
	Message string
	// Next is when the deletion may be tried again; zero when no time is known.
	Next time.Time
	// Step is what to do next, as a sentence with a command; empty for the usual one.
	Step string
}

// Judge returns why the node may not be deleted, nil when it may.
func (u Usage) Judge(policy string, node Node, now time.Time) *Refusal {
	if charged(u.Deletions, node.UID) {
		return nil
	}
	if u.Max == 0 {
		return &Refusal{Reason: admission.ReasonNodeLimit,
			Message: fmt.Sprintf("NodeDeletionPolicy %s lets no node be deleted (maxDeletions is 0)", policy)}
	}
	limit := u.Max
	if limit < 0 {
		limit = ledgerSize
	}
	if len(u.Deletions) >= limit {
		// So many deletions have to expire that one fewer than the limit is left. The
		// time is rounded up, so that waiting until then is always enough.
		next := u.Deletions[len(u.Deletions)-limit].Time.Add(u.Period + time.Second - time.Nanosecond).Truncate(time.Second)
		return &Refusal{Reason: admission.ReasonNodeLimit, Next: next,
			Message: fmt.Sprintf("NodeDeletionPolicy %s limits deletions to %d in %s, and there were %d. The next is allowed at %s, in %s%s",
				policy, limit, short(u.Period), len(u.Deletions), next.UTC().Format(time.RFC3339), short(next.Sub(now)), u.wrongClock())}
	}
	if node.Ready && u.Pool.Ready-1 < u.Floor {
		refusal := &Refusal{Reason: admission.ReasonReadyFloor,
			Message: fmt.Sprintf("NodeDeletionPolicy %s keeps %d nodes of its pool ready, and only %d are; the pool had %d nodes in the last %s. The next deletion is allowed when another node is ready",
				policy, u.Floor, u.Pool.Ready, u.Pool.Nodes+u.Pool.Deleted, short(u.Period))}
		if next := u.floorFalls(); !next.IsZero() {
			refusal.Next = next
			refusal.Message += fmt.Sprintf(", or at %s, in %s, when earlier deletions count no longer",
				next.UTC().Format(time.RFC3339), short(next.Sub(now)))
		}
		return refusal
	}
	// Below the floor a node that is not ready is held, too: what reports on so many may be
	// what is broken. A few dead nodes are everyday life, and can always be replaced.
	if unready := u.Pool.Nodes - u.Pool.Ready; !node.Ready && u.Pool.Ready < u.Floor && unready > massFailureNodes {
		return &Refusal{Reason: admission.ReasonReadyFloor,
			Message: fmt.Sprintf("NodeDeletionPolicy %s keeps %d nodes of its pool ready, and only %d are; %d of %d are not ready, which looks like a mass failure: the nodes may be well, and what reports on them not. The next deletion is allowed when %d are ready, or no more than %d are not",
				policy, u.Floor, u.Pool.Ready, unready, u.Pool.Nodes, u.Floor, massFailureNodes),
			Step: fmt.Sprintf("Wait until the nodes are ready again; if they are gone for good, lower the floor: kubectl patch nodedeletionpolicy %s --type=merge -p '{\"spec\":{\"minReady\":%d}}'",
				policy, u.Pool.Ready)}
	}
	return nil
}

// wrongClock returns what a refusal adds when deletions were written with a time
// that was ahead.
func (u Usage) wrongClock() string {
	ahead := 0
	for _, deletion := range u.Deletions {
		if deletion.WrittenTime != nil {
			ahead++
		}
	}
	if ahead == 0 {
		return ""
	}
	return fmt.Sprintf(". A clock is or was wrong: the ledger has deletions with a time that was ahead (%d), counted from when that was noticed. Compare the clocks of the API servers' machines and of the webhook's",
		ahead)
}

// floorFalls returns when, with nothing else happening, so many deletions have
// expired that a share of the pool is lower than the nodes that are ready. It is
// zero when that never comes.
func (u Usage) floorFalls() time.Time {
	for i, deletion := range u.Deletions {
		total := u.Pool.Nodes + u.Pool.Deleted - (i + 1)
		if floor, _ := floorOf(u.minReady, total); u.Pool.Ready-1 >= floor {
			return deletion.Time.Add(u.Period + time.Second - time.Nanosecond).Truncate(time.Second)
		}
	}
	return time.Time{}
}

// Allowed returns how many ready nodes may be deleted now.
func (u Usage) Allowed() int {
	allowed := max(0, u.Pool.Ready-u.Floor)
	if u.Max >= 0 {
		allowed = min(allowed, max(0, u.Max-len(u.Deletions)))
	}
	return allowed
}

// Charge returns the ledger with the deletion of the node, false when it is in there
// already.
func Charge(deletions []guardv1alpha1.NodeDeletion, node Node, user string, now time.Time) ([]guardv1alpha1.NodeDeletion, bool) {
	if charged(deletions, node.UID) {
		return deletions, false
	}
	return ordered(append(slices.Clone(deletions), guardv1alpha1.NodeDeletion{
		UID: node.UID, Node: node.Name, Time: metav1.NewMicroTime(now.UTC()), User: user,
	})), true
}

// Refund returns the ledger without the node, false when it was not in there.
func Refund(deletions []guardv1alpha1.NodeDeletion, node types.UID) ([]guardv1alpha1.NodeDeletion, bool) {
	left := slices.DeleteFunc(slices.Clone(deletions), func(d guardv1alpha1.NodeDeletion) bool { return d.UID == node })
	return left, len(left) < len(deletions)
}

func charged(deletions []guardv1alpha1.NodeDeletion, node types.UID) bool {
	return slices.ContainsFunc(deletions, func(d guardv1alpha1.NodeDeletion) bool { return d.UID == node })
}

// record charges the policy with the deletion of the node, and reports whether it did: not
// when one that counts is in the ledger. It takes out what counts no longer only where the
// room is needed, since the clock of this replica may be ahead.
func record(policy *guardv1alpha1.NodeDeletionPolicy, node Node, user string, now time.Time) bool {
	period := periodOf(&policy.Spec)
	counting := within(policy.Status.Deletions, period, now)
	if charged(counting, node.UID) {
		return false
	}
	// An entry that counts no longer is not a charge for this deletion.
	deletions, _ := Refund(policy.Status.Deletions, node.UID)
	if len(deletions) >= ledgerSize {
		deletions = counting
	}
	policy.Status.Deletions, _ = Charge(deletions, node, user, now)
	return true
}

// count writes into the status what the API server reads there when it refuses a deletion by
// itself: how many deletions count, and when the first of them does no longer.
func count(policy *guardv1alpha1.NodeDeletionPolicy, mode admission.Mode, now time.Time) {
	counting := within(policy.Status.Deletions, periodOf(&policy.Spec), now)
	policy.Status.DeletionsCounted, policy.Status.NextDeletionExpires = nil, nil
	if mode != admission.Audit {
		policy.Status.DeletionsCounted = ptr.To(int32(len(counting)))
	}
	if len(counting) > 0 {
		// Rounded up: waiting until then is always enough.
		expires := counting[0].Time.Add(periodOf(&policy.Spec) + time.Second - time.Nanosecond).Truncate(time.Second)
		policy.Status.NextDeletionExpires = ptr.To(metav1.NewTime(expires.UTC()))
	}
}

// within returns the deletions of so long before now, ordered. One whose time is a little
// ahead counts until its own time plus the age, and one that is further ahead from now on.
// A sorted ledger is not copied, since a flood of deletions reads it again and again: what
// is returned must not be changed.
func within(deletions []guardv1alpha1.NodeDeletion, age time.Duration, now time.Time) []guardv1alpha1.NodeDeletion {
	ahead := func(d guardv1alpha1.NodeDeletion) bool { return d.Time.Sub(now) > clockTolerance }
	expired := func(d guardv1alpha1.NodeDeletion) bool { return !d.Time.Add(age).After(now) }
	if slices.IsSortedFunc(deletions, byTime) && (len(deletions) == 0 || !ahead(deletions[len(deletions)-1])) {
		first := sort.Search(len(deletions), func(i int) bool { return !expired(deletions[i]) })
		return slices.Clip(deletions[first:])
	}
	left := slices.DeleteFunc(slices.Clone(deletions), expired)
	for i := range left {
		if ahead(left[i]) {
			written := left[i].Time
			left[i].Time = metav1.NewMicroTime(now.UTC())
			if left[i].WrittenTime == nil {
				left[i].WrittenTime = &written
			}
		}
	}
	slices.SortStableFunc(left, byTime)
	return left
}

func byTime(a, b guardv1alpha1.NodeDeletion) int { return a.Time.Compare(b.Time.Time) }

func ordered(deletions []guardv1alpha1.NodeDeletion) []guardv1alpha1.NodeDeletion {
	if !slices.IsSortedFunc(deletions, byTime) { // they nearly always are
		slices.SortStableFunc(deletions, byTime)
	}
	return deletions
}

func periodOf(spec *guardv1alpha1.NodeDeletionPolicySpec) time.Duration {
	if spec.Period == nil {
		return DefaultPeriod
	}
	return spec.Period.Duration
}

// floorOf returns the number that a number or a share of the total means, rounded up.
func floorOf(value intstr.IntOrString, total int) (int, error) {
	if value.Type == intstr.Int {
		if value.IntVal < 0 {
			return 0, fmt.Errorf("must not be negative")
		}
		return value.IntValue(), nil
	}
	share, ok := strings.CutSuffix(value.StrVal, "%")
	percent, err := strconv.ParseUint(share, 10, 8)
	if !ok || err != nil || percent > 100 {
		return math.MaxInt32, fmt.Errorf("must be a number, or a share from 0%% to 100%%")
	}
	return (total*int(percent) + 99) / 100, nil
}

// short prints a duration without units that are zero, and without fractions.
func short(d time.Duration) string {
	text := max(d, 0).Round(time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
