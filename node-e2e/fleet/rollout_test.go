package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/images"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// Pools of stock nodes that are there for roll-outs. Their nodes are stock again
// afterwards.
const (
	poolBlue  = "blue"
	poolGreen = "green"
	// poolRed is for the specs with labelFaults, which run next to those of the others.
	poolRed = "red"
)

const (
	// rolloutStart covers the load of three images into three nodes.
	rolloutStart = 4 * time.Minute
	// rolloutTime covers a roll-out over the pools: 25 s a node, most of it to see that
	// everything stays healthy, and twice that on a loaded machine.
	rolloutTime = 6 * time.Minute
	// backWithin is how soon a node has its old kubelet after a change began that fails.
	backWithin = 2 * time.Minute
	// timerWithin is the same where the timer does it: 75 s, and the back-off with which
	// the old kubelet starts the installer again, which reports it.
	timerWithin = 4 * time.Minute
)

// Images of the installer: with the guarded kubelet, and with two that are broken.
var (
	imageGood        = rolloutImage{"localhost/guard/installer:good", func() string { return filepath.Join(outputDir, "bin", "kubelet") }}
	imageNotStarting = rolloutImage{"localhost/guard/installer:not-starting", func() string { return filepath.Join(outputDir, "failing", build.NotStarting) }}
	imageUnguarded   = rolloutImage{"localhost/guard/installer:unguarded", func() string { return filepath.Join(outputDir, "failing", build.Unguarded) }}
)

type rolloutImage struct {
	name    string
	kubelet func() string
}

func (i rolloutImage) load(ctx context.Context, nodes []*kind.Node) error {
	// Of a name of its own: other parts of the suite load images at the same time.
	archive := filepath.Join(artifactsDir(), fmt.Sprintf("installer-%d.tar", os.Getpid()))
	defer os.Remove(archive)
	err := images.WriteFile(archive, images.Image{
		Name: i.name, Entrypoint: []string{rollout.InstallerPath},
		Files: []images.File{
			{Path: rollout.InstallerPath, Source: filepath.Join(outputDir, "bin", "guard-installer")},
			{Path: rollout.KubeletPath, Source: i.kubelet()},
		},
	})
	if err != nil {
		return fmt.Errorf("the image %s: %w", i.name, err)
	}
	return cluster.LoadImage(ctx, archive, nodes...)
}

var _ = Describe("A roll-out over two pools", Label(labelRollout), Ordered, func() {
	var (
		pods  []*subject
		nodes []*kind.Node
		// stock and guarded are the versions of the kubelets.
		stock   string
		guarded = build.GuardedVersion(framework.KubeVersion)
	)

	BeforeAll(func(ctx SpecContext) {
		if len(cluster.Pool(poolBlue)) < 2 || len(cluster.Pool(poolGreen)) < 1 {
			Skip(fmt.Sprintf("the cluster has no pools for it (--pools %s=2,%s=1)", poolBlue, poolGreen))
		}
		nodes = slices.Concat(cluster.Pool(poolBlue), cluster.Pool(poolGreen))
		stock = versionOf(ctx, nodes[0])
		for _, image := range []rolloutImage{imageGood, imageNotStarting, imageUnguarded} {
			Expect(image.load(ctx, nodes)).To(Succeed())
		}
		prepareRollouts(ctx, poolBlue, poolGreen)

		s := newScene(ctx, nil)
		var create []*corev1.Pod
		for _, node := range nodes {
			create = append(create, newPod("protected-"+node.Name(), protected, onNode(node)), newPod("plain-"+node.Name(), onNode(node)))
		}
		pods = s.run(ctx, create...)
	}, NodeTimeout(rolloutStart))

	It("refuses a node whose configuration the new kubelet does not accept, and names what", func(ctx SpecContext) {
		const file, saved = "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/config.before-the-test"
		node := cluster.Pool(poolBlue)[0]
		before := kubeletOf(ctx, node)
		script := fmt.Sprintf(`cp %[1]s %[2]s; if grep -q '^featureGates:$' %[1]s; then sed -i '/^featureGates:$/a\  NoSuchGate: true' %[1]s; else echo 'featureGates: {NoSuchGate: true}' >> %[1]s; fi`, file, saved)
		framework.Must(node.Exec(ctx, "sh", "-c", script))
		DeferCleanup(func(ctx SpecContext) { framework.Must(node.Exec(ctx, "mv", saved, file)) }, NodeTimeout(cleanTimeout))

		asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolOf(poolBlue), "--mode=Audit", "--image="+imageGood.name).
			ExpectRefused(node.Name(), "unrecognized feature gate: NoSuchGate")
		Expect(kubeletOf(ctx, node)).To(Equal(before), "its kubelet was not restarted")
		expectRunning(Default, ctx, pods...)
	}, SpecTimeout(rolloutTime))

	It("goes from Audit to Enforce, node by node, and no container is restarted", func(ctx SpecContext) {
		By("rolling out Audit")
		asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolOf(poolBlue), "--pool", poolOf(poolGreen), "--mode=Audit", "--image="+imageGood.name).ExpectDone()
		expectRolledOut(ctx, nodes, guarded, guard.Audit)
		expectRunning(Default, ctx, pods...)
		expectOneAfterTheOther(ctx, nodes)

		By("rolling out Enforce")
		asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolBlue, "--pool", poolGreen, "--mode=Enforce").ExpectDone()
		expectRolledOut(ctx, nodes, guarded, guard.Enforce)
		expectRunning(Default, ctx, pods...)
		expectOneAfterTheOther(ctx, nodes)
		for _, pod := range pods {
			if strings.HasPrefix(pod.name, "protected-") {
				awaitGuardState(ctx, pod, guard.Protected)
			}
		}
		found("roll-out: Audit and Enforce on %d nodes of two pools, %d of %d containers run on", len(nodes), len(pods), len(pods))
	}, SpecTimeout(2*rolloutTime))

	for _, broken := range []struct {
		title  string
		image  rolloutImage
		reason rollout.Reason
	}{
		{"does not start", imageNotStarting, rollout.ReasonNotStarted},
		{"starts unguarded", imageUnguarded, rollout.ReasonUnguarded},
	} {
		It("stops at the first node with a kubelet that "+broken.title+", and has the old one back there", func(ctx SpecContext) {
			blue := cluster.Pool(poolBlue)
			before := map[*kind.Node]kubeletProcess{}
			for _, node := range blue {
				before[node] = kubeletOf(ctx, node)
			}
			result := asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolBlue, "--image="+broken.image.name)

			marked := markedNodes(ctx, poolBlue)
			Expect(marked).To(HaveLen(1), "nodes with the label %s=%s\n%s", rollout.StateLabel, rollout.StateFailed, result)
			result.ExpectRefused(marked[0], string(rollout.RolledBack))
			for _, node := range blue {
				now := kubeletOf(ctx, node)
				Expect(now.checksum).To(Equal(before[node].checksum), "the program of the kubelet of %s", node.Name())
				if node.Name() != marked[0] {
					Expect(now).To(Equal(before[node]), "the kubelet of %s, which was not started", node.Name())
				}
			}
			report := reportOf(ctx, cluster.Node(marked[0]))
			Expect(report.Phase).To(Equal(rollout.RolledBack), report.Message)
			Expect(report.Reason).To(Equal(broken.reason), report.Message)
			Expect(report.Stopped).To(BeEmpty())
			took := report.Time.Sub(report.Started.Time)
			Expect(took).To(BeNumerically("<", backWithin), "from the change to the old kubelet on %s", marked[0])
			expectRunning(Default, ctx, pods...)
			found("roll-out: a kubelet that %s was rolled back on the first node after %.0f s, nothing was killed", broken.title, took.Seconds())

			By("going back to what the pool had")
			asOperator(ctx, "undo", "--pool", poolBlue, "--yes").ExpectDone()
			expectRolledOut(ctx, blue, guarded, guard.Enforce)
			Expect(markedNodes(ctx, poolBlue)).To(BeEmpty())
			expectRunning(Default, ctx, pods...)
		}, SpecTimeout(rolloutTime))
	}

	It("returns the stock kubelet and leaves nothing behind", func(ctx SpecContext) {
		asOperator(ctx, "uninstall", "--pool", poolBlue, "--pool", poolGreen, "--yes").ExpectDone()
		for _, node := range nodes {
			Expect(versionOf(ctx, node)).To(Equal(stock), "the kubelet of %s", node.Name())
			paths := strings.Join([]string{rollout.InstallDir, rollout.ConfigDir, rollout.StateDir, rollout.DropIn}, " ")
			Expect(node.Exec(ctx, "sh", "-c", "ls -d "+paths+" 2>/dev/null || true")).To(BeEmpty(), "on %s", node.Name())
			Expect(framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})).Annotations).NotTo(HaveKey(rollout.ReportAnnotation))
		}
		expectRunning(Default, ctx, pods...)
	}, SpecTimeout(rolloutTime))
})

var _ = Describe("A change of a node that would do harm when it is rolled back", Label(labelRollout, labelFaults), func() {
	It("is kept with the pods that the guard holds, and counts once someone resumes", func(ctx SpecContext) {
		if len(cluster.Pool(poolRed)) == 0 {
			Skip(fmt.Sprintf("the cluster has no pool for it (--pools %s=1)", poolRed))
		}
		node := cluster.Pool(poolRed)[0]
		Expect(imageGood.load(ctx, []*kind.Node{node})).To(Succeed())
		prepareRollouts(ctx, poolRed)
		labelNode(ctx, node, diskLabel, "ssd")
		DeferCleanup(func(ctx SpecContext) { labelNode(ctx, node, diskLabel, "") }, NodeTimeout(cleanTimeout))
		s := newScene(ctx, nil)
		held := s.run(ctx, newPod("held", protected, onNode(node), selecting(diskLabel, "ssd")))[0]
		plain := s.run(ctx, newPod("plain", onNode(node)))[0]
		stopped := s.run(ctx, newPod("stopped", onNode(node), selecting(diskLabel, "ssd")))[0]

		By("rolling out Enforce while the node lacks a label that running pods need")
		labelNode(ctx, node, diskLabel, "")
		asOperator(ctx, "start", "--allow-tag", "--yes", "--skip-audit", "--pool", poolOf(poolRed), "--mode=Enforce", "--image="+imageGood.name).
			ExpectRefused(node.Name(), "The change was not rolled back: the guard holds 1 pods now that the old kubelet would stop: "+held.namespace+"/"+held.name)
		Expect(markedNodes(ctx, poolRed)).To(ConsistOf(node.Name()))
		report := reportOf(ctx, node)
		Expect(report.Phase).To(Equal(rollout.Failed), report.Message)
		Expect(report.Reason).To(Equal(rollout.ReasonContainers), report.Message)
		Expect(report.Kept).To(BeTrue())
		Expect(report.Stopped).To(ConsistOf(HavePrefix(stopped.namespace+"/"+stopped.name+"/")), "any kubelet stops it when it is restarted")
		Expect(report.Now.Mode).To(Equal(guard.Enforce))
		Expect(versionOf(ctx, node)).To(Equal(build.GuardedVersion(framework.KubeVersion)))
		awaitGuardState(ctx, held, guard.Held, guard.AdmissionRejected)
		kubelet := kubeletOf(ctx, node)

		By("resuming with the pod still held")
		asOperator(ctx, "resume", "--pool", poolRed, "--yes").ExpectDone()
		expectRolledOut(ctx, []*kind.Node{node}, build.GuardedVersion(framework.KubeVersion), guard.Enforce)
		Expect(markedNodes(ctx, poolRed)).To(BeEmpty())
		Expect(kubeletOf(ctx, node)).To(Equal(kubelet), "the kubelet is not restarted for it")
		expectRunning(Default, ctx, held, plain)

		By("putting the label back, and going back to the stock kubelet")
		labelNode(ctx, node, diskLabel, "ssd")
		asOperator(ctx, "uninstall", "--pool", poolRed, "--release-held", "--yes").ExpectDone()
		expectRunning(Default, ctx, held, plain)
	}, SpecTimeout(2*rolloutTime))
})

var _ = Describe("The timer of a change of a node", Label(labelRollout, labelFaults), func() {
	It("puts the old kubelet back when the new one does not start and the installer was killed", func(ctx SpecContext) {
		if len(cluster.Pool(poolRed)) == 0 {
			Skip(fmt.Sprintf("the cluster has no pool for it (--pools %s=1)", poolRed))
		}
		node := cluster.Pool(poolRed)[0]
		Expect(imageNotStarting.load(ctx, []*kind.Node{node})).To(Succeed())
		prepareRollouts(ctx, poolRed)
		s := newScene(ctx, nil)
		pods := s.run(ctx, newPod("protected", protected, onNode(node)), newPod("plain", onNode(node)))
		before := kubeletOf(ctx, node)

		By("killing the installer when it has exchanged the kubelet")
		results := make(chan framework.KubectlResult, 1)
		go func() {
			defer GinkgoRecover()
			results <- asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolOf(poolRed), "--mode=Audit", "--image="+imageNotStarting.name)
		}()
		// By the node itself: a moment earlier the old kubelet would start the installer again,
		// and a moment later the installer has seen that the new one does not start.
		_, err := node.Exec(ctx, "sh", "-c", fmt.Sprintf("until test -e %s && ! systemctl is-active --quiet kubelet; do sleep 0.1; done; pkill -KILL -f '^%s run'", rollout.DropIn, rollout.InstallerPath))
		Expect(err).NotTo(HaveOccurred(), "the installer on %s", node.Name())
		timer, err := node.Exec(ctx, "systemctl", "is-active", "kubelet-guard-rollback.timer")
		Expect(err).NotTo(HaveOccurred(), "the timer on %s: %s", node.Name(), timer)

		By("waiting for the timer")
		var result framework.KubectlResult
		Eventually(results).WithContext(ctx).WithTimeout(rolloutTime).Should(Receive(&result))
		result.ExpectRefused(node.Name(), string(rollout.RolledBack))
		report := reportOf(ctx, node)
		Expect(report.Phase).To(Equal(rollout.RolledBack), report.Message)
		Expect(report.Reason).To(Equal(rollout.ReasonInterrupted), report.Message)
		Expect(report.Message).To(ContainSubstring("the node rolled it back by itself"))
		Expect(kubeletOf(ctx, node).checksum).To(Equal(before.checksum), "the program of the kubelet of %s", node.Name())
		took := report.Time.Sub(report.Started.Time)
		Expect(took).To(BeNumerically("<", timerWithin), "from the change to the old kubelet on %s", node.Name())
		expectRunning(Default, ctx, pods...)
		found("roll-out: with its installer killed, a kubelet that does not start was rolled back by the timer after %.0f s", took.Seconds())
	}, SpecTimeout(rolloutStart+2*rolloutTime))
})

var _ = Describe("The DaemonSets of a roll-out that are kept in a repository", Label(labelRollout), func() {
	It("are printed so that the API server takes them as they are", func(ctx SpecContext) {
		prepareRollouts(ctx)
		printed := asOperator(ctx, "start", "--dry-run=client", "--output=yaml", "--mode=Audit", "--image="+imageGood.name, "--max-unavailable=2",
			"--pool", poolOf(poolBlue), "--pool", poolGreen+"="+kind.PoolLabel+" in ("+poolGreen+"),!example.com/left-out").ExpectDone()
		file := filepath.Join(artifactsDir(), "daemonsets.yaml")
		Expect(os.WriteFile(file, []byte(printed.Stdout), 0o600)).To(Succeed())

		applied := tryKubectl(ctx, "apply", "--dry-run=server", "--validate=strict", "--output=json", "--filename="+file).ExpectDone()
		Expect(applied.Stderr).To(BeEmpty(), "warnings of the API server, such as of pod security")
		var list appsv1.DaemonSetList
		Expect(json.Unmarshal([]byte(applied.Stdout), &list)).To(Succeed(), applied.Stdout)
		Expect(list.Items).To(HaveLen(2), applied.Stdout)
		for i, name := range []string{poolBlue, poolGreen} {
			pool := framework.Must(rollout.PoolOf(&list.Items[i]))
			request := framework.Must(rollout.RequestOf(&list.Items[i]))
			wanted := framework.Must(rollout.DaemonSet(pool, request))
			Expect(pool.Name).To(Equal(name))
			Expect(request.Target).To(Equal(rollout.Audit))
			Expect(request.Image).To(Equal(imageGood.name))
			Expect(list.Items[i].Name).To(Equal(wanted.Name))
			Expect(list.Items[i].Namespace).To(Equal(wanted.Namespace))
			Expect(list.Items[i].Spec.UpdateStrategy).To(Equal(wanted.Spec.UpdateStrategy))
			Expect(list.Items[i].Spec.Template.Spec.Affinity).To(Equal(wanted.Spec.Template.Spec.Affinity))
		}

		for _, pool := range []string{poolBlue, poolGreen} { // the others are of specs that run at the same time
			_, err := client.AppsV1().DaemonSets(rollout.Namespace).Get(ctx, rollout.DaemonSetName(pool), metav1.GetOptions{})
			Expect(err).To(MatchError(apierrors.IsNotFound, "IsNotFound"), "nothing is made of pool %s", pool)
		}
	}, SpecTimeout(specTimeout))
})

// poolOf is a pool of the cluster as kubectl guard rollout takes one.
func poolOf(name string) string { return name + "=" + kind.PoolLabel + "=" + name }

// asOperator runs kubectl guard rollout as a user who has the role for it and the
// one of viewers, and no other.
func asOperator(ctx context.Context, args ...string) framework.KubectlResult {
	return tryKubectl(ctx, append([]string{
		"guard", "rollout", "--as=operator", "--as-group=kubelet-guard:rollout", "--as-group=kubelet-guard:viewers", "--as-group=system:authenticated",
	}, args...)...)
}

// prepareRollouts installs what roll-outs need. At the end of the spec the pools have
// their stock kubelet; the manifests stay for specs that run at the same time.
func prepareRollouts(ctx context.Context, pools ...string) {
	GinkgoHelper()
	oneAtATime(func() { kubectl(ctx, "apply", "-k", filepath.Join(manifestsDir, "rollout")) })
	DeferCleanup(func(ctx SpecContext) {
		for _, pool := range pools {
			_, err := client.AppsV1().DaemonSets(rollout.Namespace).Get(ctx, rollout.DaemonSetName(pool), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				continue
			}
			Expect(err).NotTo(HaveOccurred())
			asOperator(ctx, "uninstall", "--pool", pool, "--release-held", "--yes").ExpectDone()
		}
	}, NodeTimeout(rolloutTime))
}

func versionOf(ctx context.Context, node *kind.Node) string {
	GinkgoHelper()
	return framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})).Status.NodeInfo.KubeletVersion
}

func reportOf(ctx context.Context, node *kind.Node) *rollout.Report {
	GinkgoHelper()
	report := framework.Must(rollout.ReportOf(framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{}))))
	Expect(report).NotTo(BeNil(), "the report of %s", node.Name())
	return report
}

// expectRolledOut checks what the API server, the kubelets and the reports say.
func expectRolledOut(ctx context.Context, nodes []*kind.Node, version string, mode guard.Mode) {
	GinkgoHelper()
	for _, node := range nodes {
		Expect(versionOf(ctx, node)).To(Equal(version), "the kubelet of %s", node.Name())
		Expect(framework.Must(guardPods(ctx, node)).Mode).To(Equal(mode), "the guard of %s", node.Name())
		report := reportOf(ctx, node)
		Expect(report.Phase).To(Equal(rollout.Done), "%s: %s", node.Name(), report.Message)
		Expect(report.Now.Version).To(Equal(version))
		Expect(report.Now.Mode).To(Equal(mode))
	}
}

// expectOneAfterTheOther checks that no node was started before the one before it was
// done, and no pool before the one before it. The nodes are in the order of their pools.
func expectOneAfterTheOther(ctx context.Context, nodes []*kind.Node) {
	GinkgoHelper()
	var reports []*rollout.Report
	for _, node := range nodes {
		reports = append(reports, reportOf(ctx, node))
	}
	slices.SortFunc(reports, func(a, b *rollout.Report) int { return a.Started.Compare(b.Started.Time) })
	for i, report := range reports {
		Expect(report.Pool).To(Equal(nodes[i].Pool()), "the pool of the %d. node that was started", i+1)
		if i > 0 {
			Expect(report.Started.Time).NotTo(BeTemporally("<", reports[i-1].Time.Time), "a node was started before the previous one was done")
		}
	}
}

// markedNodes are the nodes of a pool at which a roll-out stopped.
func markedNodes(ctx context.Context, pool string) []string {
	GinkgoHelper()
	list := framework.Must(client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: rollout.StateLabel + "=" + rollout.StateFailed + "," + kind.PoolLabel + "=" + pool}))
	var names []string
	for _, node := range list.Items {
		names = append(names, node.Name)
	}
	return names
}

// kubeletProcess identifies one start of one kubelet.
type kubeletProcess struct{ pid, checksum string }

func kubeletOf(ctx context.Context, node *kind.Node) kubeletProcess {
	GinkgoHelper()
	out := framework.Must(node.Exec(ctx, "sh", "-c", `pid=$(systemctl show --property=MainPID --value kubelet); echo "$pid"; sha256sum < "/proc/$pid/exe"`))
	fields := strings.Fields(out)
	Expect(len(fields)).To(BeNumerically(">=", 2), out)
	return kubeletProcess{pid: fields[0], checksum: fields[1]}
}

var _ = Describe("An installer of a roll-out", Label(labelRollout), func() {
	It("writes to its own node only, and there its mark and its report", func(ctx SpecContext) {
		prepareRollouts(ctx)
		own, other := cluster.Pool(poolBlue)[0], cluster.Pool(poolBlue)[1]

		By("acting with the token that an installer gets from its kubelet")
		pod := newPod("installer", onNode(own))
		pod.Spec.ServiceAccountName = rollout.ServiceAccount
		pod = framework.Must(client.CoreV1().Pods(rollout.Namespace).Create(ctx, pod, metav1.CreateOptions{}))
		installer := actingAs(ctx, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID})
		patch := func(client kubernetes.Interface, node *kind.Node, content string) error {
			return framework.ErrorOf(client.CoreV1().Nodes().Patch(ctx, node.Name(), types.MergePatchType, []byte(content), metav1.PatchOptions{}))
		}
		report := `{"metadata":{"annotations":{"` + rollout.ReportAnnotation + `":"{}"}}}`
		// The policy counts a moment after it was created.
		Eventually(ctx, func() error { return patch(installer, other, report) }).WithTimeout(specTimeout).
			Should(MatchError(ContainSubstring("an installer writes to its own node only, and this one is on " + own.Name())))

		By("writing what an installer writes")
		Expect(patch(installer, own, report)).To(Succeed())
		Expect(patch(installer, own, `{"metadata":{"labels":{"`+rollout.StateLabel+`":"`+rollout.StateFailed+`"}}}`)).To(Succeed())
		Expect(patch(installer, own, `{"metadata":{"labels":{"`+rollout.StateLabel+`":null}}}`)).To(Succeed())

		By("writing anything else")
		for content, refusal := range map[string]string{
			`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`: "may set the label " + rollout.StateLabel + " and no other",
			`{"metadata":{"labels":{"` + kind.PoolLabel + `":null}}}`:              "may set the label " + rollout.StateLabel + " and no other",
			`{"metadata":{"annotations":{"example.com/other":"1"}}}`:               "may set the annotation " + rollout.ReportAnnotation + " and no other",
			`{"spec":{"unschedulable":true}}`:                                      "may not change its spec, finalizers or owners",
			`{"metadata":{"finalizers":["example.com/other"]}}`:                    "may not change its spec, finalizers or owners",
		} {
			Expect(patch(installer, own, content)).To(MatchError(ContainSubstring(refusal)), content)
		}
		unbound := actingAs(ctx, nil)
		Expect(patch(unbound, own, report)).To(MatchError(ContainSubstring("this one is on none")), "a token that no pod has")
		Expect(patch(client, own, `{"metadata":{"annotations":{"`+rollout.ReportAnnotation+`":null}}}`)).To(Succeed(), "others are not concerned")
	}, SpecTimeout(specTimeout))
})

// actingAs is a client with a token of the installers' account, for a pod or for none.
func actingAs(ctx context.Context, pod *authenticationv1.BoundObjectReference) kubernetes.Interface {
	GinkgoHelper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: pod}}
	token := framework.Must(client.CoreV1().ServiceAccounts(rollout.Namespace).CreateToken(ctx, rollout.ServiceAccount, request, metav1.CreateOptions{}))
	config := rest.AnonymousClientConfig(adminConfig)
	config.BearerToken = token.Status.Token
	return framework.Must(kubernetes.NewForConfig(config))
}
