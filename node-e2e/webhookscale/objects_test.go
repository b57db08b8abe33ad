package webhookscale

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// size says how much there is of everything. Every workload has one budget.
type size struct{ pods, nodes, budgets, namespaces, deletions int }

var created = metav1.NewTime(time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC))

func uid(kind string, i int) types.UID {
	return types.UID(fmt.Sprintf("%08x-5a2b-4c3d-8e4f-%012d", kind, i)[:36])
}

func nodeName(i int) string {
	return fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/250, i%250)
}

// workload is that of the pod or budget.
type workload struct{ namespace, name string }

func (s size) workload(i int) workload {
	w := i % s.budgets
	return workload{fmt.Sprintf("team-%d-production", w%s.namespaces), fmt.Sprintf("some-service-%d", w)}
}

func (w workload) labels() map[string]string {
	return map[string]string{
		"app.kubernetes.io/name": w.name, "app.kubernetes.io/instance": w.name + "-release", "app.kubernetes.io/part-of": "platform",
		"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "service-4.17.2",
	}
}

// managed are managedFields of a usual size.
func managed(manager string, bytes int) []metav1.ManagedFieldsEntry {
	const field = `"f:someField":{".":{},"f:other":{}},`
	fields := strings.Repeat(field, bytes/len(field)+1)
	return []metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1", Time: &created,
		FieldsV1: metav1.NewFieldsV1("{" + strings.TrimSuffix(fields, ",") + "}"),
	}}
}

// pod is one of a Deployment, as an API server shows it: some 7 KiB.
func (s size) pod(i int) *corev1.Pod {
	w := s.workload(i)
	name := fmt.Sprintf("%s-7f9c6d5b8d-%05d", w.name, i/s.budgets)
	labels := w.labels()
	labels[guardv1alpha1.ExplicitDeletionLabel] = guardv1alpha1.ExplicitDeletionRequired
	labels["pod-template-hash"] = "7f9c6d5b8d"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.namespace, Name: name, GenerateName: w.name + "-7f9c6d5b8d-", UID: uid("pod", i), ResourceVersion: fmt.Sprint(1_000_000 + i),
			CreationTimestamp: created, Labels: labels,
			Annotations: map[string]string{"checksum/config": strings.Repeat("0123456789abcdef", 4), "prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: w.name + "-7f9c6d5b8d", UID: uid("rs", i%s.budgets),
				Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true)}},
			ManagedFields: append(managed("kube-controller-manager", 1500), managed("kubelet", 900)...),
		},
		Spec: corev1.PodSpec{
			NodeName: nodeName(i % s.nodes), ServiceAccountName: w.name, SchedulerName: corev1.DefaultSchedulerName, RestartPolicy: corev1.RestartPolicyAlways,
			DNSPolicy: corev1.DNSClusterFirst, TerminationGracePeriodSeconds: ptr.To(int64(30)), PriorityClassName: "production", Priority: ptr.To(int32(1000)),
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To(int64(300))},
				{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To(int64(300))},
			},
			Volumes: []corev1.Volume{
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: w.name}}}},
				{Name: "kube-api-access-x7k2p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: ptr.To(int64(3607)), Path: "token"}},
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
				}}}},
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "10.0.0.1", PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}}, QOSClass: corev1.PodQOSBurstable, StartTime: &created},
	}
	for _, container := range []string{"service", "proxy"} {
		c := corev1.Container{
			Name: container, Image: "registry.example.com/platform/" + w.name + ":v1.204.3", ImagePullPolicy: corev1.PullIfNotPresent,
			Args:  []string{"--config=/etc/service/config.yaml", "--listen=:8080", "--log-level=info"},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("512Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
			},
			VolumeMounts:   []corev1.VolumeMount{{Name: "config", MountPath: "/etc/service"}, {Name: "kube-api-access-x7k2p", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")}}, PeriodSeconds: 5, TimeoutSeconds: 1},
		}
		for e := range 8 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SOME_VARIABLE_%d", e), Value: "https://service.example.com/api/v2"})
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: container, Ready: true, Started: ptr.To(true), Image: c.Image, ImageID: "registry.example.com/platform@sha256:" + strings.Repeat("0123456789abcdef", 4),
			ContainerID: "containerd://" + strings.Repeat("fedcba9876543210", 4), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: created}},
		})
	}
	for _, condition := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: created})
	}
	return pod
}

// node is one of a cloud, with 30 images: some 10 KiB.
func (s size) node(i int) *corev1.Node {
	name := nodeName(i)
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: uid("node", i), ResourceVersion: fmt.Sprint(2_000_000 + i), CreationTimestamp: created, ManagedFields: managed("kubelet", 2500),
			Labels: map[string]string{
				"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
				"node.kubernetes.io/instance-type": "m6i.4xlarge", "beta.kubernetes.io/instance-type": "m6i.4xlarge", "topology.kubernetes.io/region": "eu-central-1",
				"topology.kubernetes.io/zone": fmt.Sprintf("eu-central-1%c", 'a'+i%3), "pool": fmt.Sprintf("general-%d", i%5), "team": "platform",
				"failure-domain.beta.kubernetes.io/region": "eu-central-1", "failure-domain.beta.kubernetes.io/zone": fmt.Sprintf("eu-central-1%c", 'a'+i%3),
			},
			Annotations: map[string]string{"node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true", "csi.volume.kubernetes.io/nodeid": `{"ebs.csi.aws.com":"i-0123456789abcdef0"}`},
		},
		Spec: corev1.NodeSpec{ProviderID: fmt.Sprintf("aws:///eu-central-1a/i-%017x", i), PodCIDR: "10.1.0.0/24"},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeHostName, Address: name}},
			NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.36.3+guard.0.1.0", KernelVersion: "6.12.0-1-cloud-amd64", OSImage: "Debian GNU/Linux 13 (trixie)", ContainerRuntimeVersion: "containerd://2.1.4",
				Architecture: "amd64", OperatingSystem: "linux", MachineID: string(uid("m", i)), SystemUUID: string(uid("s", i)), BootID: string(uid("b", i))},
			Capacity:    corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("110")},
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("15800m"), corev1.ResourceMemory: resource.MustParse("60Gi"), corev1.ResourcePods: resource.MustParse("110")},
		},
	}
	for _, condition := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeReady} {
		status := corev1.ConditionFalse
		if condition == corev1.NodeReady {
			status = corev1.ConditionTrue
		}
		node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: condition, Status: status, LastHeartbeatTime: created, LastTransitionTime: created, Reason: "KubeletIsFine", Message: "kubelet is posting ready status"})
	}
	for image := range 30 {
		node.Status.Images = append(node.Status.Images, corev1.ContainerImage{SizeBytes: 123456789, Names: []string{
			"registry.example.com/platform/image@sha256:" + strings.Repeat("0123456789abcdef", 4), fmt.Sprintf("registry.example.com/platform/image-%d:v1.204.3", image)}})
	}
	return node
}

// budget is that of a workload installed by Helm.
func (s size) budget(i int) *policyv1.PodDisruptionBudget {
	w := s.workload(i)
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.namespace, Name: w.name, UID: uid("pdb", i), ResourceVersion: fmt.Sprint(3_000_000 + i), Generation: 1, CreationTimestamp: created, Labels: w.labels(),
			Annotations:   map[string]string{"meta.helm.sh/release-name": w.name, "meta.helm.sh/release-namespace": w.namespace},
			ManagedFields: append(managed("helm", 600), managed("kube-controller-manager", 500)...),
		},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: ptr.To(intstr.FromInt32(1)),
			Selector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": w.name, "app.kubernetes.io/instance": w.name + "-release"}},
		},
		Status: policyv1.PodDisruptionBudgetStatus{
			ObservedGeneration: 1, DisruptionsAllowed: 1, CurrentHealthy: 15, DesiredHealthy: 14, ExpectedPods: 15,
			Conditions: []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionTrue, Reason: policyv1.SufficientPodsReason, LastTransitionTime: created, ObservedGeneration: 1}},
		},
	}
}

func (s size) namespace(i int) *corev1.Namespace {
	name := fmt.Sprintf("team-%d-production", i)
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: uid("ns", i), ResourceVersion: fmt.Sprint(4_000_000 + i), CreationTimestamp: created, ManagedFields: managed("kubectl", 400),
		Labels:      map[string]string{corev1.LabelMetadataName: name, guardv1alpha1.ProtectPodsLabel: "default", "team": name},
		Annotations: map[string]string{"owner": "team@example.com"},
	}}
}

// policy is one with deletions of the last hour in its ledger.
func (s size) policy() *guardv1alpha1.NodeDeletionPolicy {
	policy := &guardv1alpha1.NodeDeletionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: guardv1alpha1.GroupVersion.String(), Kind: guardv1alpha1.NodeDeletionPolicyKind},
		ObjectMeta: metav1.ObjectMeta{Name: "all", UID: uid("ndp", 0), ResourceVersion: "5000000", Generation: 1, CreationTimestamp: created, ManagedFields: managed("guard-webhook", 400)},
		Spec:       guardv1alpha1.NodeDeletionPolicySpec{MinReady: ptr.To(intstr.FromString("10%"))},
	}
	for i := range s.deletions {
		policy.Status.Deletions = append(policy.Status.Deletions, guardv1alpha1.NodeDeletion{
			UID: uid("gone", i), Node: nodeName(i), User: "system:serviceaccount:kube-system:node-controller",
			Time: metav1.NewMicroTime(time.Now().Add(-30 * time.Minute).Add(time.Duration(i) * time.Millisecond).UTC()),
		})
	}
	return policy
}
