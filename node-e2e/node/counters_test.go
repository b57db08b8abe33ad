package node

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/criproxy"
)

// labelCounters marks what counts calls, requests and writes.
const labelCounters = "counters"

var (
	countersFlag      = flag.String("counters", "", "page that receives the table of counters between its markers; empty skips them")
	countersPodsFlag  = flag.Int("counters-pods", 5, "lives of each kind that are counted with each kubelet")
	countersBenchFlag = flag.String("counters-bench", "", "output of go test -bench -benchmem for the guard package, for a line of the table; empty leaves it out")
)

const (
	// steady is how long nothing happens to the pods, and the node's own rates are
	// taken.
	steady = 30 * time.Second
	// settle is longer than two relists of the kubelet, so that what a step of a life
	// causes is over before the next one.
	settle = 4 * time.Second
	// collection covers the kubelet's garbage collection, which comes once a minute
	// and removes the sandbox of a pod that is gone.
	collection = 3 * time.Minute

	// moreRuntimeCalls is the contract's bound for a protected pod: whether it is
	// alive may be queried at its deletion and again.
	moreRuntimeCalls = 2
	// A write takes two fsyncs, of the file and of its folder. maxWrites bounds the
	// writes of a protected pod's life without holds: one before its first container
	// starts, and one for the evidence. In between, what changed in its object is
	// written at most maxWritesPerMinute times: here the containers of its status, when
	// they run and when one was restarted.
	maxWrites          = 2
	maxWritesPerMinute = 1
)

// The life of a pod is counted with both kubelets, on one node, in one run: a proxy of
// the CRI counts the calls to the runtime, the audit log of the API server the
// requests of the node's user, strace the fsyncs, and inotify what is written to the
// state directory. Nothing here is a measurement of time.
//
// With each kubelet live some pods with the guard's label and as many without it. All
// are created, run for a while, have their container restarted by their liveness probe,
// are deleted, and are over when the kubelet has removed their sandbox. The stock
// kubelet does not know the label, so all of its lives say what is usual.
//
// What the kubelet does to a pod (start, stop, remove) is the same number in each life.
// What it requests and reports follows its relist, once a second: whether sandbox and
// container are seen in one or in two is chance. So there a life is more than usual
// only when it is beyond all lives of the stock kubelet, in the median.
var _ = Describe("The counters of a pod's life", Label(labelGuarded, labelCounters, labelControlPlane), func() {
	It("are those of the stock kubelet for an unprotected pod, and bounded for a protected one", func(ctx SpecContext) {
		if *countersFlag == "" {
			Skip("-counters names no page (make counters)")
		}
		s := newScene(ctx)
		proxy := newRuntimeProxy(ctx)
		var blocks []*countedBlock
		for _, kubelet := range []Variant{Stock, Guarded} {
			blocks = append(blocks, countBlock(ctx, s, proxy, kubelet))
		}
		table := newCountersTable(blocks[0], blocks[1])
		if *countersBenchFlag != "" {
			table.decisions = readDecisions(string(framework.Must(os.ReadFile(*countersBenchFlag))))
			Expect(table.decisions).NotTo(BeEmpty(), "benchmarks of decisions in %s", *countersBenchFlag)
		}
		text := table.markdown()
		framework.Progress("%s", text)
		Expect(writeCounters(*countersFlag, text)).To(Succeed(), "-counters")
		Expect(table.violations()).To(BeEmpty(), "what the guarded kubelet does beyond the invariants")
	}, NodeTimeout(20*time.Minute))
})

// countedBlock is what was counted in one life of a kubelet.
type countedBlock struct {
	version string
	lives   []*countedLife
	// node has what is about no pod in particular, from the time in which nothing
	// happens.
	node counts
	// lived is how long it took from the creation of the first pod until the last one
	// was deleted.
	lived time.Duration
	// shared has what was written or synced for no known pod.
	shared counts
}

// countedLife is one pod.
type countedLife struct {
	name     string
	uid      types.UID
	labelled bool
	counts   counts
}

// countBlock starts a kubelet and counts.
func countBlock(ctx context.Context, s *scene, proxy *criproxy.Proxy, kubelet Variant) *countedBlock {
	GinkgoHelper()
	framework.Progress("counters: the %s kubelet", kubelet)
	trace := newSyncTrace()
	restartKubelet(ctx, throughProxy(proxy, testnode.KubeletChange{
		Binary: trace.kubelet(kubeletBinary(kubelet)),
		// The rotation of logs reads the status of each container every 10 s, so that
		// a longer life would have more calls.
		Configure: func(config *kubeletconfig.KubeletConfiguration) {
			config.ContainerLogMonitorInterval = &metav1.Duration{Duration: time.Hour}
		},
	}))
	// What the node's status says may still be the version before.
	version, err := exec.CommandContext(ctx, kubeletBinary(kubelet), "--version").Output()
	Expect(err).NotTo(HaveOccurred(), "run the %s kubelet for its version", kubelet)
	b := &countedBlock{version: strings.TrimPrefix(strings.TrimSpace(string(version)), "Kubernetes "), node: counts{}, shared: counts{}}

	// The first pod pays for what the kubelet does once.
	s.countLives(ctx, b, proxy, 0, fmt.Sprintf("%s-first", kubelet))
	b.lives = nil
	writes := watchWrites(filepath.Join(provider.Node().KubeletDir(), "guard"))
	start := time.Now()
	proxy.Reset()
	steadyFrom, steadyTo := s.countLives(ctx, b, proxy, *countersPodsFlag, string(kubelet))

	of := map[types.UID]*countedLife{}
	for _, life := range b.lives {
		of[life.uid] = life
	}
	// The time of each call explains differences.
	var timeline strings.Builder
	for _, call := range proxy.Calls() {
		if life := of[types.UID(call.PodUID)]; life != nil {
			fmt.Fprintln(&timeline, call.Start.Format("15:04:05.000"), life.name, runtimeRow(call), call.ContainerID, call.Code)
			life.counts.add(groupRuntime, runtimeRow(call))
		} else if call.WholeNode() && call.Start.After(steadyFrom) && call.Start.Before(steadyTo) {
			b.node.add(groupRuntime, runtimeRow(call))
		}
	}
	Expect(os.WriteFile(filepath.Join(artifactsDir(), fmt.Sprintf("counters-%s.txt", kubelet)), []byte(timeline.String()), 0o644)).To(Succeed())
	for _, request := range readAudit(start) {
		row := apiRow(request)
		if life := request.life(b.lives, s.namespace); life != nil {
			life.counts.add(groupAPI, row)
		} else if at := request.RequestReceivedTimestamp.Time; at.After(steadyFrom) && at.Before(steadyTo) {
			b.node.add(groupAPI, row)
		}
	}
	for _, name := range writes.stop() {
		if life := lifeIn(b.lives, name); life != nil {
			life.counts.add(groupState, rowWrites)
		} else {
			b.shared.add(groupState, rowWrites+": "+name)
		}
	}
	for _, path := range trace.synced() {
		switch life := lifeIn(b.lives, path); {
		case strings.Contains(path, "/kubelet/guard") && life != nil:
			life.counts.add(groupState, rowSyncs)
		case strings.Contains(path, "/kubelet/guard"):
			b.shared.add(groupState, rowSyncs)
		default:
			b.shared.add(groupKubelet, rowSyncs)
		}
	}
	return b
}

// countLives has pods of both kinds live side by side, 0 of each for one without the
// label only, and returns the time in which nothing happened.
func (s *scene) countLives(ctx context.Context, b *countedBlock, proxy *criproxy.Proxy, each int, prefix string) (steadyFrom, steadyTo time.Time) {
	GinkgoHelper()
	first := each == 0
	created := time.Now()
	for n := range max(2*each, 1) {
		labelled := n%2 == 1
		template := s.newPod(fmt.Sprintf("%s-%d", prefix, n), func(pod *corev1.Pod) {
			// Ready as soon as it runs, and one failure of one probe: how many there are
			// would be chance. It comes long after the start, and waits long, so that no
			// slow machine fails it.
			pod.Spec.Containers[0].ReadinessProbe = nil
			pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
				ProbeHandler: httpGet("/healthz", workloadPort), InitialDelaySeconds: 15, PeriodSeconds: 1, TimeoutSeconds: 15, FailureThreshold: 1,
			}
			if labelled {
				protected(pod)
			}
		})
		pod := s.create(ctx, template)
		b.lives = append(b.lives, &countedLife{name: pod.Name, uid: pod.UID, labelled: labelled, counts: counts{}})
	}
	for _, life := range b.lives {
		s.awaitServing(ctx, life.name, life.uid)
	}
	if !first {
		pause(ctx, settle)
		steadyFrom = time.Now()
		pause(ctx, steady)
		steadyTo = time.Now()
		for _, life := range b.lives {
			s.request(ctx, life.name, "/fail", map[string]string{"on": "true"})
		}
		for _, life := range b.lives {
			s.awaitRestarts(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: life.name}}, 1)
			s.awaitServing(ctx, life.name, life.uid)
		}
		pause(ctx, settle)
	}
	for _, life := range b.lives {
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, life.name, metav1.DeleteOptions{})).To(Succeed(), "delete pod %s", life.name)
	}
	b.lived = time.Since(created)
	for _, life := range b.lives {
		s.awaitGone(ctx, &subject{name: life.name, namespace: s.namespace, uid: life.uid}, collection)
	}
	if !first {
		Eventually(func(g Gomega) {
			removed := map[string]bool{}
			for _, call := range proxy.Calls() {
				if call.Method == "RemovePodSandbox" && !call.Running {
					removed[call.PodUID] = true
				}
			}
			for _, life := range b.lives {
				g.Expect(removed).To(HaveKey(string(life.uid)), "sandboxes that the kubelet has removed")
			}
		}).WithContext(ctx).WithTimeout(collection).Should(Succeed())
		pause(ctx, settle)
	}
	return steadyFrom, steadyTo
}

func pause(ctx context.Context, d time.Duration) {
	GinkgoHelper()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		Fail("interrupted: " + context.Cause(ctx).Error())
	}
}

// lifeIn returns the life whose UID is in a path.
func lifeIn(lives []*countedLife, path string) *countedLife {
	for _, life := range lives {
		if strings.Contains(path, string(life.uid)) {
			return life
		}
	}
	return nil
}

// runtimeRow names a call, and for lists by what.
func runtimeRow(call criproxy.Call) string {
	switch {
	case !call.Filtered:
		return call.Method
	case call.ContainerID != "":
		return call.Method + " by container"
	case call.SandboxID != "":
		return call.Method + " by sandbox"
	case call.PodUID != "":
		return call.Method + " by pod"
	}
	return call.Method + " by state"
}

// auditPolicy logs the requests of nodes, each once, when it is over. The object of an
// event and of a token is in the request only.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - level: Request
    userGroups: [system:nodes]
    resources:
      - group: ""
        resources: [events, serviceaccounts/token]
  - level: Metadata
    userGroups: [system:nodes]
`

func auditLogPath() string { return filepath.Join(artifactsDir(), "audit.log") }

// auditFlags writes the policy and returns the flags with which the API server keeps
// the log.
func auditFlags() ([]string, error) {
	policy := filepath.Join(artifactsDir(), "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(auditLogPath()); err != nil {
		return nil, err
	}
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + auditLogPath(), "--audit-log-mode=blocking"}, nil
}

// auditRequest is a request of the node.
type auditRequest struct{ auditv1.Event }

// readAudit returns the requests since.
func readAudit(since time.Time) []auditRequest {
	GinkgoHelper()
	var requests []auditRequest
	for _, event := range framework.Must(framework.ReadAudit(auditLogPath(), since)) {
		requests = append(requests, auditRequest{event})
	}
	return requests
}

func apiRow(r auditRequest) string {
	if r.ObjectRef == nil {
		return r.Verb + " " + r.RequestURI
	}
	resource := r.ObjectRef.Resource
	if r.ObjectRef.Subresource != "" {
		resource += "/" + r.ObjectRef.Subresource
	}
	return r.Verb + " " + resource
}

// life returns the pod that the request is about.
func (r auditRequest) life(lives []*countedLife, namespace string) *countedLife {
	if r.ObjectRef == nil {
		return nil
	}
	if r.RequestObject != nil {
		// Events and tokens: the UID is in the body.
		if life := lifeIn(lives, string(r.RequestObject.Raw)); life != nil {
			return life
		}
	}
	for _, life := range lives {
		switch {
		case r.ObjectRef.Resource == "pods" && r.ObjectRef.Namespace == namespace && r.ObjectRef.Name == life.name,
			r.ObjectRef.Name == string(life.uid),
			// A patch of an event has the event's name only, which starts with the pod's.
			r.ObjectRef.Resource == "events" && r.ObjectRef.Namespace == namespace && strings.HasPrefix(r.ObjectRef.Name, life.name+"."):
			return life
		}
	}
	return nil
}

// syncTrace is what strace writes about a kubelet.
type syncTrace struct{ dir string }

// newSyncTrace needs strace (Debian: strace).
func newSyncTrace() *syncTrace {
	GinkgoHelper()
	_, err := exec.LookPath("strace")
	Expect(err).NotTo(HaveOccurred(), "counting fsyncs needs strace: apt-get install strace")
	return &syncTrace{dir: GinkgoT().TempDir()}
}

func (t *syncTrace) output() string { return filepath.Join(t.dir, "strace.txt") }

// kubelet returns a program that is the kubelet under strace. The tracer is a process
// of its own (-D), so that the kubelet keeps its process id, and the kernel stops it at
// the traced calls only (--seccomp-bpf).
func (t *syncTrace) kubelet(binary string) string {
	GinkgoHelper()
	program := filepath.Join(t.dir, "kubelet")
	script := fmt.Sprintf("#!/bin/sh\nexec strace -D -f --seccomp-bpf -y -qq -e signal=none -e trace=fsync,fdatasync,syncfs -o '%s' '%s' \"$@\"\n", t.output(), binary)
	Expect(os.WriteFile(program, []byte(script), 0o755)).To(Succeed())
	return program
}

var syncLine = regexp.MustCompile(`(?m)^\d+\s+(?:fsync|fdatasync|syncfs)\(\d+<([^>]*)>`)

// synced returns the paths that were synced.
func (t *syncTrace) synced() []string {
	GinkgoHelper()
	return syncedPaths(string(framework.Must(os.ReadFile(t.output()))))
}

func syncedPaths(trace string) []string {
	var paths []string
	for _, m := range syncLine.FindAllStringSubmatch(trace, -1) {
		paths = append(paths, m[1])
	}
	return paths
}

func TestSyncedPaths(t *testing.T) {
	const trace = `17 fsync(12</var/lib/kubelet/guard/pods/u1.pod.new>) = 0
18    fdatasync(9</var/lib/kubelet/x> <unfinished ...>
17 fsync(13</var/lib/kubelet/guard/pods> <unfinished ...>
18 <... fdatasync resumed>)              = 0
17 <... fsync resumed>)                  = 0
17 +++ exited with 0 +++
`
	want := []string{"/var/lib/kubelet/guard/pods/u1.pod.new", "/var/lib/kubelet/x", "/var/lib/kubelet/guard/pods"}
	if diff := cmp.Diff(want, syncedPaths(trace)); diff != "" {
		t.Error(diff)
	}
}

// writeWatch notes what is written in a folder and the folders in it.
type writeWatch struct {
	file  *os.File
	names chan string
}

// watchWrites watches a folder that may not exist. Folders that are made in it later
// are seen, but not watched.
func watchWrites(root string) *writeWatch {
	GinkgoHelper()
	w := &writeWatch{names: make(chan string, 4096)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	Expect(err).NotTo(HaveOccurred(), "watch %s", root)
	w.file = os.NewFile(uintptr(fd), "inotify")
	const what = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE
	_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_, err = unix.InotifyAddWatch(fd, path, what)
		}
		return err
	})
	go func() {
		defer close(w.names)
		buffer := make([]byte, 64<<10)
		for {
			n, err := w.file.Read(buffer)
			if err != nil {
				return
			}
			for offset := 0; offset+unix.SizeofInotifyEvent <= n; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&buffer[offset]))
				start := offset + unix.SizeofInotifyEvent
				offset = start + int(event.Len)
				w.names <- strings.TrimRight(string(buffer[start:offset]), "\x00")
			}
		}
	}()
	return w
}

// stop returns the name of the file of each operation.
func (w *writeWatch) stop() []string {
	GinkgoHelper()
	// What has happened is in the queue already.
	time.Sleep(100 * time.Millisecond)
	Expect(w.file.Close()).To(Succeed())
	var names []string
	for name := range w.names {
		names = append(names, name)
	}
	return names
}

func TestWatchWrites(t *testing.T) {
	g := NewWithT(t)
	root := t.TempDir()
	g.Expect(os.Mkdir(filepath.Join(root, "pods"), 0o755)).To(Succeed())
	RegisterTestingT(t)
	w := watchWrites(root)
	g.Expect(os.WriteFile(filepath.Join(root, "pods", "u1.new"), []byte("x"), 0o600)).To(Succeed())
	g.Expect(os.Rename(filepath.Join(root, "pods", "u1.new"), filepath.Join(root, "pods", "u1"))).To(Succeed())
	g.Expect(os.Remove(filepath.Join(root, "pods", "u1"))).To(Succeed())
	g.Expect(w.stop()).To(Equal([]string{"u1.new", "u1.new", "u1.new", "u1", "u1"}))
}
