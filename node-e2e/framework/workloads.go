package framework

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// AppLabels are the labels by which a workload or a budget selects the pods of an app.
func AppLabels(app string) map[string]string { return map[string]string{"app": app} }

// AppSelector selects the pods of an app.
func AppSelector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: AppLabels(app)}
}

// NewPodTemplate returns a template of pods with these labels and one container, which have
// no token and the grace period of all specs.
func NewPodTemplate(labels map[string]string, container corev1.Container) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(GracePeriod.Seconds())),
			AutomountServiceAccountToken:  ptr.To(false),
			Containers:                    []corev1.Container{container},
		},
	}
}

// NewPod returns a pod of a template, not yet created.
func NewPod(name string, template corev1.PodTemplateSpec) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = name
	return pod
}

// NewDeployment returns a Deployment, not yet created, over the pods of the app with its
// name.
func NewDeployment(name string, replicas int, template corev1.PodTemplateSpec) *appsv1.Deployment {
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: ptr.To(int32(replicas)), Selector: AppSelector(name), Template: template},
	}
}

// NewStatefulSet is NewDeployment for a StatefulSet.
func NewStatefulSet(name string, replicas int, template corev1.PodTemplateSpec) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.StatefulSetSpec{Replicas: ptr.To(int32(replicas)), ServiceName: name, Selector: AppSelector(name), Template: template},
	}
}

// NewDaemonSet is NewDeployment for a DaemonSet.
func NewDaemonSet(name string, template corev1.PodTemplateSpec) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DaemonSetSpec{Selector: AppSelector(name), Template: template},
	}
}

// NewBudget returns a disruption budget, not yet created, over the pods of an app.
func NewBudget(name, app string, minAvailable int) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt(minAvailable)), Selector: AppSelector(app)},
	}
}
