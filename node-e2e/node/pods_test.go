package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
)

const (
	// protectionLabel with protectionValue is the default pod selector of the guard.
	protectionLabel = "kubelet-guard.io/explicit-deletion"
	protectionValue = "required"

	workloadImage     = embedded.WorkloadImage
	workloadContainer = framework.WorkloadContainer
	workloadPort      = framework.WorkloadPort
	gracePeriod       = framework.GracePeriod
)

// Waits for single pods.
const (
	// podStart covers sandbox, network and container on a loaded machine.
	podStart = time.Minute
	// deletionSlack is what a deletion may take beyond the grace period: the watch,
	// the runtime and the removal of the object.
	deletionSlack = 15 * time.Second
	apiLag        = framework.APILag
	// controllerLag covers controllers that have lost the API server, to a spec before:
	// they come back with a back-off of up to 30 s.
	controllerLag = time.Minute
	// deathPoll bounds the error of the measured kill times.
	deathPoll = 50 * time.Millisecond
)

// scene is the namespace of one spec, with a Service over the pods in it.
type scene struct {
	namespace string
	// lost holds what etcd had about pods whose keys the spec has deleted.
	lost map[types.UID][]byte
}

// current is the running spec's scene, for the report of its failure.
var current *scene

// newScene makes the namespace and sees to it that nothing of it is left on the
// node afterwards.
func newScene(ctx context.Context) *scene {
	GinkgoHelper()
	namespace := framework.Must(client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"},
	}, metav1.CreateOptions{}))
	s := &scene{namespace: namespace.Name, lost: map[types.UID][]byte{}}
	DeferCleanup(s.remove, NodeTimeout(2*time.Minute))
	current = s
	DeferCleanup(func() { current = nil })
	framework.Must(client.CoreV1().Services(s.namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "pods"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "e2e"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(workloadPort)}},
		},
	}, metav1.CreateOptions{}))
	return s
}

// remove deletes the spec's pods and waits for their containers, because what a
// spec leaves on the node would take resources from the next one.
func (s *scene) remove(ctx SpecContext) {
	Eventually(func(g Gomega) {
		framework.DeletePods(g, ctx, client, s.namespace)
		for _, c := range framework.Try(provider.Node().Runtime().Containers(ctx)).In(g) {
			g.Expect(c.PodNamespace).NotTo(Equal(s.namespace), "container %s of pod %s still runs", c.Name, c.PodName)
		}
	}).WithContext(ctx).WithTimeout(time.Minute).Should(Succeed(), "the node is left as it was found")
	framework.DeleteNamespace(ctx, client, s.namespace)
}

// podOption changes a pod before it is created.
type podOption func(*corev1.Pod)

// protected requests the guard's protection.
func protected(pod *corev1.Pod) { pod.Labels[protectionLabel] = protectionValue }

// requesting sets the CPU request, in thousandths of a core, and a little memory.
func requesting(milliCPU int64) podOption {
	return func(pod *corev1.Pod) {
		for i := range pod.Spec.Containers {
			pod.Spec.Containers[i].Resources.Requests = cpuAndMemory(milliCPU)
		}
	}
}

// withArgs replaces the workload's arguments.
func withArgs(args ...string) podOption {
	return func(pod *corev1.Pod) { pod.Spec.Containers[0].Args = args }
}

func restartPolicy(policy corev1.RestartPolicy) podOption {
	return func(pod *corev1.Pod) { pod.Spec.RestartPolicy = policy }
}

// newPod is the template of all pods: a server that is ready as soon as it
// responds. It names its node itself, so that no spec depends on the scheduler.
func (s *scene) newPod(name string, options ...podOption) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:      name,
			Namespace: s.namespace,
			Labels:    map[string]string{"app": "e2e"},
		},
		Spec: corev1.PodSpec{
			NodeName:                      provider.Node().Name(),
			TerminationGracePeriodSeconds: ptr.To(int64(gracePeriod.Seconds())),
			Containers:                    []corev1.Container{newContainer(workloadContainer, workloadPort)},
		},
	}
	for _, option := range options {
		option(pod)
	}
	return pod
}

func newContainer(name string, port int32) corev1.Container {
	container := framework.NewContainer(name, port)
	container.Env = []corev1.EnvVar{{Name: "PORT", Value: fmt.Sprint(port)}}
	return container
}

func httpGet(path string, port int32) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}}
}

// subject is a pod whose process a spec keeps an eye on.
type subject struct {
	name, namespace string
	uid             types.UID
	ip              string
	process         testnode.Process
	sandbox         testnode.Process
	death           *deathWatch
}

func (s *subject) String() string { return s.namespace + "/" + s.name }

// create creates a pod. Right after its namespace, the service account may not
// be there yet.
func (s *scene) create(ctx context.Context, pod *corev1.Pod) *corev1.Pod {
	GinkgoHelper()
	var created *corev1.Pod
	Eventually(func() (err error) {
		created, err = client.CoreV1().Pods(s.namespace).Create(ctx, pod, metav1.CreateOptions{})
		return err
	}).WithContext(ctx).WithTimeout(controllerLag).Should(Succeed(), "create pod %s", pod.Name)
	return created
}

// run creates pods from the template and waits until each serves behind the
// Service.
func (s *scene) run(ctx context.Context, pods ...*corev1.Pod) []*subject {
	GinkgoHelper()
	created := make([]*corev1.Pod, len(pods))
	for i, pod := range pods {
		created[i] = s.create(ctx, pod)
	}
	subjects := make([]*subject, len(pods))
	for i, pod := range created {
		s.awaitServing(ctx, pod.Name, pod.UID)
		subjects[i] = s.observe(ctx, pod.Name, workloadContainer)
	}
	return subjects
}

// runProtected runs one protected pod in a scene of its own.
func runProtected(ctx context.Context, options ...podOption) (*scene, *subject) {
	GinkgoHelper()
	s := newScene(ctx)
	return s, s.run(ctx, s.newPod("protected", append([]podOption{protected}, options...)...))[0]
}

// observe identifies the process of a pod's running container and starts to
// watch it.
func (s *scene) observe(ctx context.Context, pod, container string) *subject {
	GinkgoHelper()
	object := framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, pod, metav1.GetOptions{}))
	found := &subject{name: pod, namespace: s.namespace, uid: object.UID, ip: object.Status.PodIP}
	Eventually(func(g Gomega) {
		running := framework.Try(containersOf(ctx, object.UID)).In(g)
		g.Expect(running).To(HaveKey(container))
		found.process, found.sandbox = running[container].Process, running[container].Sandbox
	}).WithContext(ctx).WithTimeout(podStart).Should(Succeed(), "the runtime runs container %s of pod %s", container, pod)
	found.death = watchDeath(found.process)
	return found
}

// containersOf lists the running containers of one pod by name.
func containersOf(ctx context.Context, uid types.UID) (map[string]testnode.Container, error) {
	all, err := provider.Node().Runtime().Containers(ctx)
	if err != nil {
		return nil, err
	}
	own := map[string]testnode.Container{}
	for _, c := range all {
		if c.PodUID == string(uid) {
			own[c.Name] = c
		}
	}
	return own, nil
}

// awaitServing waits until a pod is Running, Ready and a ready endpoint.
func (s *scene) awaitServing(ctx context.Context, pod string, uid types.UID) {
	GinkgoHelper()
	Eventually(s.expectServing).WithContext(ctx).WithArguments(ctx, pod, uid).WithTimeout(podStart).
		Should(Succeed(), "pod %s/%s runs and serves", s.namespace, pod)
}

// expectServing checks that a pod is shown as what it is: Running, Ready and a
// ready endpoint of the Service.
func (s *scene) expectServing(g Gomega, ctx context.Context, name string, uid types.UID) {
	s.expectReady(g, ctx, name, uid)
	g.Expect(s.endpointReady(ctx, uid)).To(BeTrue(), "pod %s is a ready endpoint of the service", name)
}

// expectReady checks that the API shows the pod with the UID as Running and Ready.
func (s *scene) expectReady(g Gomega, ctx context.Context, name string, uid types.UID) {
	pod := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, name, metav1.GetOptions{})).In(g)
	g.Expect(pod.UID).To(Equal(uid), "UID of pod %s", name)
	g.Expect(pod.Status.Phase).To(Equal(corev1.PodRunning), "phase of pod %s (reason %q, message %q)", name, pod.Status.Reason, pod.Status.Message)
	g.Expect(testnode.PodReady(pod)).To(BeTrue(), "pod %s is Ready: %v", name, pod.Status.Conditions)
}

func (s *scene) endpointReady(ctx context.Context, uid types.UID) (bool, error) {
	slices, err := client.DiscoveryV1().EndpointSlices(s.namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=pods",
	})
	if err != nil {
		return false, err
	}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if endpoint.TargetRef != nil && endpoint.TargetRef.UID == uid {
				return ptr.Deref(endpoint.Conditions.Ready, false), nil
			}
		}
	}
	return false, nil
}

// request sends a request to a pod's workload, through the API server.
func (s *scene) request(ctx context.Context, pod, path string, query map[string]string) string {
	GinkgoHelper()
	return string(framework.Must(client.CoreV1().Pods(s.namespace).ProxyGet("http", pod, fmt.Sprint(workloadPort), path, query).DoRaw(ctx)))
}

// exit makes a pod's workload end with a code. Its response may be lost: the connection
// ends with the process. A process that has just started may not listen yet.
func (s *scene) exit(ctx context.Context, pod string, code int) {
	GinkgoHelper()
	Eventually(func() error {
		_, err := client.CoreV1().Pods(s.namespace).ProxyGet("http", pod, fmt.Sprint(workloadPort), "/exit", map[string]string{"code": fmt.Sprint(code)}).DoRaw(ctx)
		if err == nil || strings.Contains(err.Error(), "connection refused") {
			return err
		}
		GinkgoWriter.Printf("GET /exit of pod %s: %v\n", pod, err)
		return nil
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the request to exit reaches pod %s", pod)
}

// fetch sends a request to a pod's workload at the pod's own address, which works
// without the pod's object and without an API server.
func fetch(ctx context.Context, pod *subject, port int32, path string) (string, error) {
	response, err := provider.Node().Fetch(ctx, fmt.Sprintf("http://%s:%d%s", pod.ip, port, path))
	if err != nil {
		return response, fmt.Errorf("pod %s: %w", pod, err)
	}
	return response, nil
}

// expectFile checks the file that a container of a pod serves.
func expectFile(g Gomega, ctx context.Context, pod *subject, port int32, content string) {
	g.Expect(fetch(ctx, pod, port, "/file")).To(Equal(content), "file that pod %s serves on port %d", pod, port)
}

// deathWatch notes when a process ends.
type deathWatch struct {
	ended chan struct{}
	at    time.Time
}

// watchDeath watches a process until it ends or the spec does.
func watchDeath(p testnode.Process) *deathWatch {
	w := &deathWatch{ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	DeferCleanup(cancel)
	go func() {
		ticker := time.NewTicker(deathPoll)
		defer ticker.Stop()
		for {
			// An unreadable /proc says nothing about the process, so only a clear
			// result counts.
			if alive, err := p.Alive(); err == nil && !alive {
				w.at = time.Now()
				close(w.ended)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	return w
}

// seen reports whether the process ended, and when.
func (w *deathWatch) seen() (time.Time, bool) {
	select {
	case <-w.ended:
		return w.at, true
	default:
		return time.Time{}, false
	}
}

// awaitDeath waits for a subject's process to end and returns how long after the
// given moment that was. A process that ended before it, because the fault was
// complete later than its effect, counts as 0.
func (s *subject) awaitDeath(ctx context.Context, since time.Time, within time.Duration) time.Duration {
	GinkgoHelper()
	Eventually(s.death.ended).WithContext(ctx).WithTimeout(within).Should(BeClosed(),
		"the process of pod %s (%s) ends within %s", s, s.process, within)
	return max(0, s.death.at.Sub(since))
}

// awaitHonoured is awaitDeath for a process whose end was requested explicitly. One that
// does not end is a failure whatever the next attempt at the spec says.
func (s *subject) awaitHonoured(ctx context.Context, requested time.Time, within time.Duration) time.Duration {
	GinkgoHelper()
	honoured := false
	defer func() {
		if !honoured {
			specLog.Stand("the process of pod %s (%s) was to end within %s of an explicit deletion", s, s.process, within)
		}
	}()
	took := s.awaitDeath(ctx, requested, within)
	honoured = true
	return took
}

// expectAlive checks that the process of the start still runs. One that does not is a
// failure whatever the next attempt at the spec says.
func (s *subject) expectAlive(g Gomega) {
	at, dead := s.death.seen()
	if dead {
		specLog.Stand("the process of pod %s (%s) had to run on and ended at %s", s, s.process, at.Format(time.TimeOnly))
	}
	g.Expect(dead).To(BeFalse(), "the process of pod %s (%s) ended at %s", s, s.process, at.Format(time.TimeOnly))
}

// stayAlive checks for a while that the processes of the start run on.
func stayAlive(ctx context.Context, during time.Duration, pods ...*subject) {
	GinkgoHelper()
	Consistently(func(g Gomega) {
		for _, pod := range pods {
			pod.expectAlive(g)
		}
	}).WithContext(ctx).WithTimeout(during).Should(Succeed())
}

// deleteExplicitly deletes pods through the API, one after the other, as deleteWith does.
func (s *scene) deleteExplicitly(ctx context.Context, pods ...*subject) {
	GinkgoHelper()
	for _, pod := range pods {
		s.deleteWith(ctx, pod, metav1.DeleteOptions{})
	}
}

// deleteWith deletes a pod through the API and waits until its process, its
// containers and its object are gone. It returns how long the process took.
func (s *scene) deleteWith(ctx context.Context, pod *subject, options metav1.DeleteOptions) time.Duration {
	GinkgoHelper()
	grace := gracePeriod
	if options.GracePeriodSeconds != nil {
		grace = time.Duration(*options.GracePeriodSeconds) * time.Second
	}
	requested := time.Now()
	err := client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, options)
	Expect(err).NotTo(HaveOccurred(), "delete pod %s", pod)
	took := pod.awaitHonoured(ctx, requested, grace+deletionSlack)
	s.awaitGone(ctx, pod, grace+deletionSlack)
	return took
}

// awaitGone waits until neither the runtime nor the API knows the pod any more.
func (s *scene) awaitGone(ctx context.Context, pod *subject, within time.Duration) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(containersOf(ctx, pod.uid)).To(BeEmpty(), "running containers of pod %s", pod)
		framework.ExpectPodGone(g, ctx, client, s.namespace, pod.name, pod.uid)
	}).WithContext(ctx).WithTimeout(within).Should(Succeed(), "pod %s is gone from the node and from the API", pod)
}
