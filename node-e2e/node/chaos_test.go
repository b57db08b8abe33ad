package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// labelChaos marks the run that kills the kubelet at random moments.
const labelChaos = "chaos"

var (
	chaosKillsFlag = flag.Int("chaos-kills", 8, "how often the chaos run kills the kubelet")
	chaosSeedFlag  = flag.Uint64("chaos-seed", 2026, "seed of the chaos run, the same in every run of the suite; 0 takes one by chance, as make chaos does. A run prints the seed that repeats its decisions")
)

// chaosSettle is what the kubelet may need, without further kills, until every pod
// is as it must be: a restart in back-off, a look-up of records every 10 s, and 30 s
// after which the guard checks whether anything is left of a pod whose object is gone.
const chaosSettle = 2 * time.Minute

var _ = Describe("A kubelet that is killed at random moments", Label(labelGuarded, labelChaos), func() {
	It("loses no protected pod and leaves no deleted one", func(ctx SpecContext) {
		seed := *chaosSeedFlag
		if seed == 0 {
			seed = rand.Uint64N(1<<32) + 1
		}
		newChaosRun(ctx, newChaosPlan(seed, *chaosKillsFlag)).run(ctx)
	}, NodeTimeout(2*time.Hour))
})

// chaosRun carries out a plan on the node.
type chaosRun struct {
	*scene
	plan    *chaosPlan
	started time.Time
	round   int
	// logStart is where in the kubelet's log the run starts.
	logStart int64
	pods     []*chaosPod
}

// chaosPod is a pod of the run. The model in it is brought up to date with each
// step, before the step is made.
type chaosPod struct {
	plannedPod
	*subject
	run *chaosRun
	// killed is the process that the run killed; the zero value if it killed none.
	killed testnode.Process
	story  []string
}

func (p *chaosPod) note(format string, args ...any) {
	p.story = append(p.story, fmt.Sprintf("%7.2f s  life %d: ", time.Since(p.run.started).Seconds(), p.run.round+1)+fmt.Sprintf(format, args...))
}

// tale is what a violation prints: the pod's history and how to repeat the run.
func (p *chaosPod) tale() string {
	return fmt.Sprintf("pod %s (UID %s), which must be: %s, object %s, protected: %t\n  %s\nrepeat with: make chaos %s",
		p.subject, p.uid, p.fate, p.object, p.protected, strings.Join(p.story, "\n  "), p.run)
}

func (c *chaosRun) String() string {
	return fmt.Sprintf("KILLS=%d SEED=%d", len(c.plan.rounds), c.plan.seed)
}

func newChaosRun(ctx context.Context, plan *chaosPlan) *chaosRun {
	c := &chaosRun{scene: newScene(ctx), plan: plan, started: time.Now()}
	DeferCleanup(c.releaseAll, NodeTimeout(time.Minute))
	applyManifests(ctx)
	return c
}

// run is the whole of it. The seed is printed first and last.
func (c *chaosRun) run(ctx context.Context) {
	framework.Progress("chaos: %s, %s", c, c.plan)
	// The same decisions do not meet the same moments again.
	well := false
	defer func() {
		if !well {
			specLog.Stand("a chaos run failed: %s", c)
		}
		framework.Progress("chaos: %s, %d lives of the kubelet in %.0f s", c, c.round+1, time.Since(c.started).Seconds())
	}()
	c.logStart = framework.Must(os.Stat(provider.Node().Kubelet().LogPath())).Size()
	stopKubelet(ctx)
	for n, r := range c.plan.rounds {
		c.round = n
		c.live(ctx, r)
		c.expectNoneLost()
		if (n+1)%25 == 0 {
			framework.Progress("chaos: %d kills after %.0f s, %d pods so far", n+1, time.Since(c.started).Seconds(), len(c.pods))
		}
	}
	c.round++
	c.conclude(ctx)
	well = true
}

// live is one life of the kubelet.
func (c *chaosRun) live(ctx context.Context, r chaosRound) {
	kubelet := provider.Node().Kubelet()
	started := make(chan error, 1)
	start := func() {
		ctx, cancel := context.WithTimeout(ctx, kubeletStart)
		defer cancel()
		started <- kubelet.Start(ctx, unchanged)
	}
	if r.early {
		go start()
	} else {
		start()
		Expect(<-started).To(Succeed(), "start the kubelet; its log is %s", kubelet.LogPath())
		started <- nil
	}
	if r.checkpoint {
		c.settle(ctx)
	}
	for _, step := range r.calm {
		c.step(ctx, step, whileCalm)
		p := c.pods[step.pod]
		Eventually(p.expectGone).WithContext(ctx).WithArguments(ctx).WithTimeout(gracePeriod+deletionSlack).Should(Succeed(), p.tale)
	}

	killed := make(chan error, 1)
	go func() {
		if err := passTime(ctx, r.killAfter); err != nil {
			killed <- err
			return
		}
		err := kubelet.Kill(ctx)
		// The kill may have come before there was a process. It is made up for when
		// the start has returned, which a killed kubelet's does at once.
		var exit *testnode.ExitError
		if startErr := <-started; startErr != nil && !errors.As(startErr, &exit) {
			err = errors.Join(err, startErr)
		}
		killed <- errors.Join(err, kubelet.Kill(ctx))
	}()
	for _, step := range r.up {
		c.step(ctx, step, whileUp)
	}
	Expect(<-killed).To(Succeed(), "kill the kubelet in its life %d", c.round+1)
	for _, step := range r.down {
		c.step(ctx, step, whileDown)
	}
}

// passTime passes time: the distance between two random moments.
func passTime(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// step makes one step of the plan.
func (c *chaosRun) step(ctx context.Context, step chaosStep, moment chaosMoment) {
	Expect(passTime(ctx, step.after)).To(Succeed())
	if step.action == createPod || step.action == createPlainPod {
		c.create(ctx, step)
		return
	}
	p := c.pods[step.pod]
	p.expectNotLost()
	p.apply(step.action, moment)
	p.note("%s (kubelet %s); must be: %s", step.action, moment, p.fate)
	pods := client.CoreV1().Pods(c.namespace)
	var err error
	switch step.action {
	case deletePod:
		err = ctrlclient.IgnoreNotFound(pods.Delete(ctx, p.subject.name, metav1.DeleteOptions{}))
	case forceDelete:
		err = ctrlclient.IgnoreNotFound(pods.Delete(ctx, p.subject.name, immediately))
	case recordedDelete:
		err = errors.Join(createRecord(ctx, p.subject), ctrlclient.IgnoreNotFound(pods.Delete(ctx, p.subject.name, immediately)))
	case putLabel:
		c.patch(ctx, p.subject, fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, protectionLabel, protectionValue))
	case removeLabel:
		c.patch(ctx, p.subject, fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, protectionLabel))
	case loseObject:
		c.loseKey(ctx, p.subject)
	case putObjectBack:
		err = provider.Node().Storage().Put(ctx, podKey(p.subject), c.lost[p.uid])
	case passDeadline:
		c.patch(ctx, p.subject, `{"spec":{"activeDeadlineSeconds":1}}`)
	case claimFailed:
		c.patchPhase(ctx, p.subject, corev1.PodFailed)
	case killProcess:
		p.killed = p.process
		err = killNow(p.process)
	case killSandbox:
		if !p.protected {
			p.killed = p.process
		}
		err = killNow(p.sandbox)
	case writeRecord:
		err = createRecord(ctx, p.subject)
	case writeReleaseFile:
		err = writeRelease(p.uid)
	}
	Expect(err).NotTo(HaveOccurred(), func() string { return fmt.Sprintf("%s: %s", step.action, p.tale()) })
}

func (c *chaosRun) create(ctx context.Context, step chaosStep) {
	p := &chaosPod{run: c, plannedPod: plannedPod{name: fmt.Sprintf("pod-%d", step.pod), object: objectInAPI, fate: mustRun}}
	p.protected = step.action == createPod
	p.sandboxLabel = p.protected
	var options []podOption
	if p.protected {
		options = append(options, protected)
	}
	created := c.scene.create(ctx, c.newPod(p.plannedPod.name, options...))
	p.subject = &subject{name: created.Name, namespace: created.Namespace, uid: created.UID}
	p.note("%s", step.action)
	c.pods = append(c.pods, p)
}

func killNow(process testnode.Process) error {
	err := syscall.Kill(process.PID, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// expectNotLost fails if the process of a pod ended that must run.
func (p *chaosPod) expectNotLost() {
	GinkgoHelper()
	if p.death == nil || !p.sameProcess() {
		return
	}
	at, dead := p.death.seen()
	Expect(dead).To(BeFalse(), func() string {
		return fmt.Sprintf("VIOLATION: the process (%s) ended %.2f s after the start of the run without evidence: %s", p.process, at.Sub(p.run.started).Seconds(), p.tale())
	})
}

func (c *chaosRun) expectNoneLost() {
	GinkgoHelper()
	for _, p := range c.pods {
		p.expectNotLost()
	}
}

// sighting is what the node and the API say at one time.
type sighting struct {
	containers map[types.UID]testnode.Container
	objects    map[types.UID]*corev1.Pod
	guarded    map[types.UID]*guard.PodState
	saved      map[types.UID]bool
}

func (c *chaosRun) look(g Gomega, ctx context.Context) sighting {
	s := sighting{
		containers: map[types.UID]testnode.Container{}, objects: map[types.UID]*corev1.Pod{},
		guarded: map[types.UID]*guard.PodState{},
	}
	for _, container := range framework.Try(provider.Node().Runtime().Containers(ctx)).In(g) {
		if container.PodNamespace == c.namespace {
			s.containers[types.UID(container.PodUID)] = container
		}
	}
	objects := framework.Try(client.CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{})).In(g)
	for i := range objects.Items {
		s.objects[objects.Items[i].UID] = &objects.Items[i]
	}
	list := framework.Try(readGuardPods(ctx)).In(g)
	for i := range list.Items {
		s.guarded[list.Items[i].UID] = &list.Items[i]
	}
	s.saved = framework.Try(savedPods()).In(g)
	return s
}

// savedPods lists the pods that have a file in the state directory.
func savedPods() (map[types.UID]bool, error) {
	entries, err := os.ReadDir(filepath.Join(provider.Node().KubeletDir(), "guard", "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	saved := map[types.UID]bool{}
	for _, entry := range entries {
		saved[types.UID(strings.TrimSuffix(entry.Name(), ".pod"))] = true
	}
	return saved, nil
}

// settle is a checkpoint: it waits until the kubelet has brought every pod that
// must run into the state that it must be in, and identifies new processes.
func (c *chaosRun) settle(ctx context.Context) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		s := c.look(g, ctx)
		for _, p := range c.pods {
			if p.fate == mustRun {
				p.expectSettled(g, s)
			}
		}
	}).WithContext(ctx).WithTimeout(chaosSettle).Should(Succeed(), "every pod that must run does, and is what the guard takes it for")
	for _, p := range c.pods {
		p.settled = true
	}
}

func (p *chaosPod) expectSettled(g Gomega, s sighting) {
	p.expectNotLost()
	container, running := s.containers[p.uid]
	g.Expect(running).To(BeTrue(), func() string { return "the runtime runs no container of " + p.tale() })
	g.Expect(container.Process).NotTo(Equal(p.killed), func() string { return "no new container yet in place of the killed one of " + p.tale() })
	if p.death == nil || p.process != container.Process && !p.sameProcess() {
		p.process, p.sandbox = container.Process, container.Sandbox
		p.death = watchDeath(p.process)
		p.note("runs (%s)", p.process)
	}
	g.Expect(container.Process).To(Equal(p.process), func() string { return "process of " + p.tale() })

	object, there := s.objects[p.uid]
	g.Expect(there).To(Equal(p.object == objectInAPI), func() string { return "the API has the object of " + p.tale() })
	if there {
		g.Expect(object.Status.Phase).To(Equal(corev1.PodRunning), func() string { return "phase in the API of " + p.tale() })
	}
	known := s.guarded[p.uid]
	g.Expect(known != nil).To(Equal(p.protected), func() string { return fmt.Sprintf("known in %s: %s", guard.PodsPath, p.tale()) })
	g.Expect(s.saved[p.uid]).To(Equal(p.protected), func() string { return "has a file in the state directory: " + p.tale() })
	if known == nil {
		return
	}
	g.Expect(known.ObjectPresent).To(Equal(there), func() string { return fmt.Sprintf("object present in %s: %s", guard.PodsPath, p.tale()) })
	states := []guard.State{guard.Held}
	if there {
		states = append(states, guard.Protected)
	}
	g.Expect(known.State).To(BeElementOf(states), func() string { return fmt.Sprintf("state in %s: %s", guard.PodsPath, p.tale()) })
}

// expectGone checks that nothing of the pod runs, and that a deletion took its
// object away.
func (p *chaosPod) expectGone(g Gomega, ctx context.Context) {
	g.Expect(containersOf(ctx, p.uid)).To(BeEmpty(), "running containers of pod %s", p.subject)
	if p.deleting || p.object != objectInAPI {
		_, err := client.CoreV1().Pods(p.namespace).Get(ctx, p.subject.name, metav1.GetOptions{})
		g.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "read pod %s: %v", p.subject, err)
	}
}

// conclude leaves the kubelet alone and checks what has become of every pod; then
// it ends those that live, and checks that too.
func (c *chaosRun) conclude(ctx context.Context) {
	startKubelet(ctx, unchanged)
	framework.Progress("chaos: settling after %.0f s", time.Since(c.started).Seconds())
	c.settle(ctx)
	for _, p := range c.pods {
		if p.fate == mustEnd {
			Eventually(p.expectGone).WithContext(ctx).WithArguments(ctx).WithTimeout(chaosSettle).
				Should(Succeed(), func() string { return "VIOLATION: it must have ended: " + p.tale() })
		}
	}
	kept, released := c.concludeOpen(ctx)
	c.expectFiles(ctx, "the state directory has files of exactly the protected pods that live")
	c.settle(ctx)
	c.expectNoneLost()
	lived := 0
	for _, p := range c.pods {
		if p.fate == mustRun {
			lived++
		}
	}
	framework.Progress("chaos: %d pods in all, %d run as they must; of those whose fate was open, %d run on and %d were held and ended by a record", len(c.pods), lived, kept, released)

	By("ending the pods that live")
	for i, p := range c.pods {
		if p.fate != mustRun {
			continue
		}
		action := deletePod
		switch {
		case p.object == objectLost && i%2 == 0:
			c.step(ctx, chaosStep{action: putObjectBack, pod: i}, whileCalm)
		case p.object != objectInAPI && p.protected:
			action = []chaosAction{writeRecord, writeReleaseFile}[i%2]
		}
		c.step(ctx, chaosStep{action: action, pod: i}, whileCalm)
	}
	for _, p := range c.pods {
		Eventually(p.expectGone).WithContext(ctx).WithArguments(ctx).WithTimeout(chaosSettle).
			Should(Succeed(), func() string { return "VIOLATION: it must have ended: " + p.tale() })
	}
	c.expectFiles(ctx, "the state directory is empty")
	Expect(c.linesInLog(`cause="`+string(guard.RuntimeStop)+`"`, "panic:", "fatal error:", "DATA RACE")).To(BeEmpty(),
		"refusals by the last line of defence, and crashes, in the log %s; repeat with: make chaos %s", provider.Node().Kubelet().LogPath(), c)
}

// concludeOpen deals with pods whose fate depended on what the kubelet saw. What
// has its object is deleted by the end of the spec; what has none and runs is held,
// and ends with a record.
func (c *chaosRun) concludeOpen(ctx context.Context) (kept, released int) {
	for i, p := range c.pods {
		if p.fate != mayEither {
			continue
		}
		gone := false
		// Termination may be under way; a hold would stay.
		Eventually(func(g Gomega) {
			s := c.look(g, ctx)
			known := s.guarded[p.uid]
			// A sandbox without a container can be held, too.
			if _, running := s.containers[p.uid]; !running && (known == nil || known.State != guard.Held) {
				gone = true
				return
			}
			if _, there := s.objects[p.uid]; there {
				g.Expect(p.deleting).To(BeFalse(), p.tale)
				return
			}
			g.Expect(known).NotTo(BeNil(), func() string {
				return fmt.Sprintf("runs without an object and is not in %s: %s", guard.PodsPath, p.tale())
			})
			g.Expect(known.State).To(Equal(guard.Held), func() string { return fmt.Sprintf("state in %s: %s", guard.PodsPath, p.tale()) })
		}).WithContext(ctx).WithTimeout(chaosSettle).Should(Succeed(), "a pod without an object is gone or held")
		if gone {
			p.note("is gone")
			p.fate = mustEnd
			continue
		}
		action := deletePod
		if p.object == objectInAPI && !p.deleting {
			kept++
		} else {
			p.object, action = objectRemoved, writeRecord
			released++
		}
		c.step(ctx, chaosStep{action: action, pod: i}, whileCalm)
		Expect(p.fate).NotTo(Equal(mustRun))
		p.fate = mustEnd
		Eventually(p.expectGone).WithContext(ctx).WithArguments(ctx).WithTimeout(chaosSettle).
			Should(Succeed(), func() string { return "VIOLATION: it must have ended: " + p.tale() })
	}
	return kept, released
}

// expectFiles checks that the state directory has files of exactly the protected
// pods that must live.
func (c *chaosRun) expectFiles(ctx context.Context, what string) {
	GinkgoHelper()
	want := map[types.UID]bool{}
	for _, p := range c.pods {
		if p.fate == mustRun && p.protected {
			want[p.uid] = true
		}
	}
	Eventually(func(g Gomega) {
		saved := framework.Try(savedPods()).In(g)
		for uid := range saved {
			i := slices.IndexFunc(c.pods, func(p *chaosPod) bool { return p.uid == uid })
			g.Expect(i).NotTo(Equal(-1), "the file %s is of a pod of this run", uid)
			g.Expect(want).To(HaveKey(uid), func() string { return "VIOLATION: a file is left of " + c.pods[i].tale() })
		}
		for _, p := range c.pods {
			g.Expect(saved[p.uid] || !want[p.uid]).To(BeTrue(), func() string { return "VIOLATION: no file of " + p.tale() })
		}
	}).WithContext(ctx).WithTimeout(chaosSettle).Should(Succeed(), what)
}

// linesInLog returns the lines with any of the texts that the kubelet has logged in
// all its lives of the run.
func (c *chaosRun) linesInLog(texts ...string) []string {
	GinkgoHelper()
	content := framework.Must(os.ReadFile(provider.Node().Kubelet().LogPath()))
	var found []string
	for line := range strings.Lines(string(content[c.logStart:])) {
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(line, text) }) {
			found = append(found, line)
		}
	}
	return found
}

// releaseAll lets pods end that a failed run left without an object.
func (c *chaosRun) releaseAll(ctx SpecContext) {
	for _, container := range framework.Must(provider.Node().Runtime().Containers(ctx)) {
		if container.PodNamespace != c.namespace {
			continue
		}
		_, err := client.CoreV1().Pods(c.namespace).Get(ctx, container.PodName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			Expect(writeRelease(types.UID(container.PodUID))).To(Succeed())
		}
	}
}
