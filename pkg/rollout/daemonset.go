package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// maxPoolName keeps the names that are made from a pool's within 63 characters.
const maxPoolName = 40

// minReadySeconds is how long an installer has to be ready before its node counts.
const minReadySeconds = 5

// gracePeriodSeconds is how long an installer that is deleted may take to bring a change
// to its end, one way or the other.
const gracePeriodSeconds = 420

// Pool is a set of nodes that a roll-out changes together.
type Pool struct {
	// Name is a DNS label of at most 40 characters.
	Name string `json:"name"`
	// Selector selects the nodes by their labels, in the form of kubectl --selector. It
	// may not be empty.
	Selector string `json:"selector"`
	// MaxUnavailable is how many nodes may be in the middle of a change, or have failed,
	// before the roll-out waits: the number of slots. At least 1, at most
	// MaxUnavailableLimit.
	MaxUnavailable int `json:"maxUnavailable"`
	// Without are names of nodes that are selected and left out all the same, because they
	// could not be changed when the pool was inspected. At most MaxWithout.
	Without []string `json:"without,omitempty"`
	// MaxUnavailableLimit bounds MaxUnavailable; 0 is DefaultMaxUnavailableLimit.
	MaxUnavailableLimit int `json:"maxUnavailableLimit,omitempty"`
	// MaxUnready is how many installers may be not ready before Kubernetes replaces no
	// further one, as a number or a share. Those on nodes that are not ready count. nil is
	// 100%: the slots alone set the pace.
	MaxUnready *intstr.IntOrString `json:"maxUnready,omitempty"`
}

// MaxWithout bounds the nodes that a pool leaves out: each is a part of every installer's pod.
const MaxWithout = 100

// LookGate is the scheduling gate of installers that only inspect. The command that starts them
// removes it from some at a time, so that not all nodes pull the image at once.
const LookGate = guardv1alpha1.GroupName + "/look"

// DefaultMaxUnavailableLimit bounds how many nodes of a pool are changed at a time, unless
// the pool has a limit of its own. Each slot costs the API server about half a request a
// second.
const DefaultMaxUnavailableLimit = 100

// Validate returns an error that names every field that is wrong.
func (p Pool) Validate() error {
	var errs field.ErrorList
	name := field.NewPath("name")
	for _, message := range validation.IsDNS1123Label(p.Name) {
		errs = append(errs, field.Invalid(name, p.Name, message))
	}
	if len(p.Name) > maxPoolName {
		errs = append(errs, field.TooLong(name, p.Name, maxPoolName))
	}
	if _, err := p.requirements(); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("selector"), p.Selector, err.Error()))
	}
	limit := p.MaxUnavailableLimit
	if limit == 0 {
		limit = DefaultMaxUnavailableLimit
	}
	if limit < 0 {
		errs = append(errs, field.Invalid(field.NewPath("maxUnavailableLimit"), limit, "must not be negative"))
	}
	switch {
	case p.MaxUnavailable < 1:
		errs = append(errs, field.Invalid(field.NewPath("maxUnavailable"), p.MaxUnavailable, "must be at least 1"))
	case p.MaxUnavailable > limit:
		errs = append(errs, field.Invalid(field.NewPath("maxUnavailable"), p.MaxUnavailable, fmt.Sprintf("must be at most %d; a pool may set another maxUnavailableLimit", limit)))
	}
	if p.MaxUnready != nil {
		if n, err := intstr.GetScaledValueFromIntOrPercent(p.MaxUnready, 100, true); err != nil || n < 1 || p.MaxUnready.Type == intstr.String && n > 100 {
			errs = append(errs, field.Invalid(field.NewPath("maxUnready"), p.MaxUnready.String(), "must be a number from 1, or a share from 1% to 100%"))
		}
	}
	if len(p.Without) > MaxWithout {
		errs = append(errs, field.TooMany(field.NewPath("without"), len(p.Without), MaxWithout))
	}
	return errs.ToAggregate()
}

// Matches reports whether the node is in the pool: selected, not left out, and not of
// another operating system than Linux. A pool that is not valid selects none.
func (p Pool) Matches(node *corev1.Node) bool {
	if _, err := p.requirements(); err != nil || slices.Contains(p.Without, node.Name) {
		return false
	}
	// A kubelet labels its node; without the label nothing shows that it is another one.
	if system := node.Labels[corev1.LabelOSStable]; system != "" && system != linux {
		return false
	}
	selector, err := labels.Parse(p.Selector)
	return err == nil && selector.Matches(labels.Set(node.Labels))
}

var nodeOperators = map[selection.Operator]corev1.NodeSelectorOperator{
	selection.Equals:       corev1.NodeSelectorOpIn,
	selection.DoubleEquals: corev1.NodeSelectorOpIn,
	selection.In:           corev1.NodeSelectorOpIn,
	selection.NotEquals:    corev1.NodeSelectorOpNotIn,
	selection.NotIn:        corev1.NodeSelectorOpNotIn,
	selection.Exists:       corev1.NodeSelectorOpExists,
	selection.DoesNotExist: corev1.NodeSelectorOpDoesNotExist,
	selection.GreaterThan:  corev1.NodeSelectorOpGt,
	selection.LessThan:     corev1.NodeSelectorOpLt,
}

// linux is the operating system of nodes that can be changed.
const linux = "linux"

// fields leave nodes out. Each may name one node only.
func (p Pool) fields() []corev1.NodeSelectorRequirement {
	var fields []corev1.NodeSelectorRequirement
	for _, name := range p.Without {
		fields = append(fields, corev1.NodeSelectorRequirement{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpNotIn, Values: []string{name}})
	}
	return fields
}

// requirements is the selector in the form of a pod's node affinity.
func (p Pool) requirements() ([]corev1.NodeSelectorRequirement, error) {
	selector, err := labels.Parse(p.Selector)
	if err != nil {
		return nil, err
	}
	parsed, selectable := selector.Requirements()
	if !selectable || len(parsed) == 0 {
		return nil, fmt.Errorf("an empty selector would select every node, control plane included: name a label")
	}
	requirements := make([]corev1.NodeSelectorRequirement, 0, len(parsed))
	for _, r := range parsed {
		operator, ok := nodeOperators[r.Operator()]
		if !ok {
			return nil, fmt.Errorf("operator %q of %s is not supported for nodes", r.Operator(), r.Key())
		}
		requirement := corev1.NodeSelectorRequirement{Key: r.Key(), Operator: operator}
		if operator != corev1.NodeSelectorOpExists && operator != corev1.NodeSelectorOpDoesNotExist {
			requirement.Values = slices.Sorted(slices.Values(r.ValuesUnsorted()))
		}
		requirements = append(requirements, requirement)
	}
	return append(requirements, corev1.NodeSelectorRequirement{Key: corev1.LabelOSStable, Operator: corev1.NodeSelectorOpIn, Values: []string{linux}}), nil
}

// podLabels select the pods of a pool's installers.
func podLabels(pool string) map[string]string {
	return map[string]string{NameLabel: Name, PoolLabel: pool}
}

// DaemonSet returns the DaemonSet that asks the nodes of the pool for the request. It is
// the same for the same arguments, so that a template that was used before gives the
// revision that it had. Pool and request must be valid.
func DaemonSet(pool Pool, request Request) (*appsv1.DaemonSet, error) {
	if err := pool.Validate(); err != nil {
		return nil, fmt.Errorf("pool %s: %w", pool.Name, err)
	}
	if err := request.Validate(); err != nil {
		return nil, fmt.Errorf("pool %s: %w", pool.Name, err)
	}
	requirements, err := pool.requirements()
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", pool.Name, err)
	}
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: DaemonSetName(pool.Name), Labels: podLabels(pool.Name)},
		Spec: appsv1.DaemonSetSpec{
			Selector:        &metav1.LabelSelector{MatchLabels: podLabels(pool.Name)},
			UpdateStrategy:  RollingUpdate(pool),
			MinReadySeconds: minReadySeconds,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels: podLabels(pool.Name),
					Annotations: map[string]string{
						RequestAnnotation: encode(request),
						PoolAnnotation:    encode(pool),
					},
				},
				Spec: podSpec(request, corev1.NodeSelectorTerm{MatchExpressions: requirements, MatchFields: pool.fields()}),
			},
		},
	}, nil
}

// RollingUpdate is the update strategy of the pool's DaemonSet while it is not paused. It
// is not the brake: Kubernetes counts installers on nodes that are not ready, so that a
// pool with as many such nodes as slots would be stalled.
func RollingUpdate(pool Pool) appsv1.DaemonSetUpdateStrategy {
	unready := ptr.Deref(pool.MaxUnready, intstr.FromString("100%"))
	return appsv1.DaemonSetUpdateStrategy{
		Type:          appsv1.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &unready, MaxSurge: ptr.To(intstr.FromInt(0))},
	}
}

func podSpec(request Request, selected corev1.NodeSelectorTerm) corev1.PodSpec {
	var gates []corev1.PodSchedulingGate
	if request.Target == Observe {
		gates = []corev1.PodSchedulingGate{{Name: LookGate}}
	}
	fromField := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	annotation := func(key string) string { return fmt.Sprintf("metadata.annotations['%s']", key) }
	return corev1.PodSpec{
		SchedulingGates:               gates,
		ServiceAccountName:            ServiceAccount,
		PriorityClassName:             "system-node-critical",
		TerminationGracePeriodSeconds: ptr.To[int64](gracePeriodSeconds),
		// The processes of the node are inspected, its kubelet is queried at its own
		// address, and a broken pod network does not matter.
		HostPID:     true,
		HostNetwork: true,
		DNSPolicy:   corev1.DNSDefault,
		// A node that is cordoned, not ready or under pressure belongs to its pool.
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{selected},
			},
		}},
		Containers: []corev1.Container{{
			Name:            Container,
			Image:           request.Image,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Command:         []string{InstallerPath, "run"},
			Env: []corev1.EnvVar{
				fromField(RequestEnv, annotation(RequestAnnotation)),
				fromField(PoolEnv, annotation(PoolAnnotation)),
				fromField(NodeEnv, "spec.nodeName"),
				fromField(PodEnv, "metadata.name"),
				fromField(NamespaceEnv, "metadata.namespace"),
			},
			SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true), RunAsUser: ptr.To[int64](0)},
			// No limits: an installer that is throttled or killed in the middle helps
			// nobody.
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi"),
			}},
			ReadinessProbe: &corev1.Probe{
				ProbeHandler:     corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{InstallerPath, "ready"}}},
				PeriodSeconds:    5,
				TimeoutSeconds:   5,
				FailureThreshold: 1,
			},
			VolumeMounts: []corev1.VolumeMount{{
				// Mounts that the node gets later, such as /run of another boot, are seen.
				Name: "host", MountPath: HostRoot, MountPropagation: ptr.To(corev1.MountPropagationHostToContainer),
			}},
		}},
		Volumes: []corev1.Volume{{
			Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/", Type: ptr.To(corev1.HostPathDirectory)}},
		}},
	}
}

// RequestOf returns the request of a DaemonSet that DaemonSet made, in this release or in an
// earlier one: ReleaseHeld may be set, which no node accepts any more. The error names the
// DaemonSet.
func RequestOf(ds *appsv1.DaemonSet) (Request, error) {
	request, err := readRequest(ds.Spec.Template.Annotations[RequestAnnotation])
	if err != nil {
		return Request{}, fmt.Errorf("daemonset %s/%s: annotation %s: %w", ds.Namespace, ds.Name, RequestAnnotation, err)
	}
	return request, nil
}

// PoolOf returns the pool of a DaemonSet that DaemonSet made. The error names the
// DaemonSet.
func PoolOf(ds *appsv1.DaemonSet) (Pool, error) {
	pool, err := ParsePool(ds.Spec.Template.Annotations[PoolAnnotation])
	if err != nil {
		return Pool{}, fmt.Errorf("daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	return pool, nil
}

// ParsePool decodes what PoolAnnotation has, strictly, and validates it.
func ParsePool(data string) (Pool, error) {
	var pool Pool
	if err := decode(data, &pool); err != nil {
		return Pool{}, fmt.Errorf("the pool of the roll-out (annotation %s): %w", PoolAnnotation, err)
	}
	if err := pool.Validate(); err != nil {
		return Pool{}, fmt.Errorf("the pool of the roll-out (annotation %s): %w", PoolAnnotation, err)
	}
	return pool, nil
}

// Joined reports whether the node was created after the request of the DaemonSet was made.
// Nothing is known of a DaemonSet that does not say when that was: no node has joined.
func Joined(ds *appsv1.DaemonSet, node *corev1.Node) bool {
	started, err := time.Parse(time.RFC3339, ds.Annotations[StartedAnnotation])
	return err == nil && node.CreationTimestamp.After(started)
}

// Paused reports whether no installer of the DaemonSet may start to change its node.
func Paused(ds *appsv1.DaemonSet) bool { return ds.Annotations[PausedAnnotation] == "true" }

func decodeLoose(data string, into any) error { return json.Unmarshal([]byte(data), into) }
