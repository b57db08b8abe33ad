package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/deviceplugin"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// cards is the resource that a spec's device plugin has.
const cards corev1.ResourceName = "e2e.kubelet-guard.io/card"

var _ = Describe("A kubelet restart before that of the device plugin", Label(labelGuarded, labelOwnMachine), func() {
	// Admission starts with the init container, which does not run any more, and fails
	// there for want of healthy devices.
	It("costs no protected pod its life, and no orphan its device, its claim or its CPU", func(ctx SpecContext) {
		s := newScene(ctx)
		s.needTwoCPUs(ctx)
		static := startStaticCPUs(ctx)
		stopCards, driver := startCards(ctx), startDriver(ctx)
		orphanClaim, freedClaim := s.claimDevice(ctx, "orphan"), s.claimDevice(ctx, "unprotected")
		pods := s.run(ctx,
			s.newPod("protected", protected, withCards(1), withInitOnCard),
			s.newPod("unprotected", withCards(1), withInitOnCard, withResourceClaim("unprotected")),
			s.newPod("orphan", protected, exclusiveCPU, withCards(1), withResourceClaim("orphan")))
		keptPod, unprotected, orphan := pods[0], pods[1], pods[2]
		own := allowedCPUs(orphan.process)
		Expect(own).To(MatchRegexp(`^\d+$`), "CPUs of pod %s", orphan)
		kept, freed := cardsOf(keptPod.process), cardsOf(unprotected.process)
		Expect(driver.Prepared(orphanClaim) && driver.Prepared(freedClaim)).To(BeTrue(), "the claims are prepared")

		By("restarting the kubelet without the plugin, and without the object and the file of one pod")
		stopKubelet(ctx)
		stopCards()
		s.loseKey(ctx, orphan)
		Expect(os.Remove(savedFile(orphan))).To(Succeed())
		since := time.Now()
		startKubelet(ctx, static)
		unprotected.awaitDeath(ctx, since, killTimeout)
		s.awaitHeld(ctx, keptPod, guard.AdmissionRejected)

		By("starting the plugin, and requesting what is free and more")
		startCards(ctx)
		more := s.create(ctx, s.newPod("more", withCards(2)))
		s.expectRejected(ctx, more, "UnexpectedAdmissionError")
		next := s.run(ctx, s.newPod("next", withCards(1)))[0]
		Expect(cardsOf(next.process)).To(Equal(freed), "cards of pod %s", next)
		s.exit(ctx, keptPod.name, 1)
		restarted := awaitRestarted(ctx, keptPod)
		Expect(cardsOf(restarted.process)).To(Equal(kept), "cards of pod %s", keptPod)
		// The CPU manager reconciles every 10 s.
		Consistently(func(g Gomega) {
			orphan.expectAlive(g)
			g.Expect(allowedCPUs(orphan.process)).To(Equal(own), "CPUs of pod %s", orphan)
			g.Expect(allowedCPUs(next.process)).NotTo(ContainSubstring(own), "CPUs of pod %s", next)
		}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed(), "nobody else gets the CPU of pod %s", orphan)
		Eventually(driver.Prepared).WithContext(ctx).WithArguments(freedClaim).WithTimeout(claimReconcile).Should(BeFalse(), "claim of pod %s", unprotected)
		Expect(driver.Prepared(orphanClaim)).To(BeTrue(), "claim of pod %s", orphan)
		found := framework.Must(guardPod(ctx, orphan.uid))
		Expect(framework.HeldFor(found)).To(ContainElements(guard.OrphanedRuntimePod, guard.ResourcesReclaimed), "causes of pod %s in %s", orphan, guard.PodsPath)

		requested := releaseByFile(orphan)
		orphan.awaitHonoured(ctx, requested, releaseFileTimeout+gracePeriod+killSlack)
		s.deleteExplicitly(ctx, restarted)
		Eventually(driver.Prepared).WithContext(ctx).WithArguments(orphanClaim).WithTimeout(claimReconcile).Should(BeFalse(), "claim of pod %s, which has ended", orphan)
	})
})

// claimReconcile covers the minute after which the kubelet looks for claims of pods that
// it does not know.
const claimReconcile = 80 * time.Second

// claimDriver is the driver of a spec's resource claims.
const claimDriver = "claims.e2e.kubelet-guard.io"

// startDriver starts the driver of resource claims, which ends with the spec.
func startDriver(ctx context.Context) *deviceplugin.Driver {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, apiLag)
	defer cancel()
	driver, err := deviceplugin.StartDriver(ctx, provider.Node().KubeletDir(), "/var/lib/kubelet", claimDriver)
	Expect(err).NotTo(HaveOccurred(), "start the driver of resource claims")
	DeferCleanup(driver.Stop)
	return driver
}

// claimDevice makes a resource claim with a device, as the scheduler does when it finds
// one, and returns its UID. The controller manager reserves it for its pod.
func (s *scene) claimDevice(ctx context.Context, name string) (uid string) {
	GinkgoHelper()
	claims := client.ResourceV1().ResourceClaims(s.namespace)
	claim, err := claims.Create(ctx, &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{
			Name: "device", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: claimDriver},
		}}}},
	}, metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred(), "create resource claim %s", name)
	claim.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{
		Results: []resourcev1.DeviceRequestAllocationResult{{Request: "device", Driver: claimDriver, Pool: deviceplugin.Pool, Device: name}},
	}}
	framework.Must(claims.UpdateStatus(ctx, claim, metav1.UpdateOptions{}))
	return string(claim.UID)
}

// withResourceClaim lets the workload's container use a resource claim.
func withResourceClaim(name string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: name, ResourceClaimName: &name}}
		pod.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: name}}
	}
}

// startCards starts the device plugin with three cards and waits until the node has them.
// The plugin ends with the spec, or before.
func startCards(ctx context.Context) (stop func()) {
	GinkgoHelper()
	folder := filepath.Join(provider.Node().KubeletDir(), "device-plugins")
	plugin, err := deviceplugin.Start(ctx, folder, string(cards), "card-1", "card-2", "card-3")
	Expect(err).NotTo(HaveOccurred(), "start the device plugin")
	running := true
	stop = func() {
		if running {
			plugin.Stop()
		}
		running = false
	}
	DeferCleanup(stop)
	Eventually(func(g Gomega) {
		node := framework.Try(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})).In(g)
		g.Expect(node.Status.Allocatable.Name(cards, resource.DecimalSI).Value()).To(BeEquivalentTo(3), "cards of the node")
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the node has the plugin's cards")
	return stop
}

// withCards requests cards in the workload's container.
func withCards(number int64) podOption {
	return func(pod *corev1.Pod) { requestCards(&pod.Spec.Containers[0], number) }
}

func requestCards(container *corev1.Container, number int64) {
	if container.Resources.Limits == nil {
		container.Resources.Limits = corev1.ResourceList{}
	}
	container.Resources.Limits[cards] = *resource.NewQuantity(number, resource.DecimalSI)
}

// withInitOnCard adds an init container that completes and uses the workload's card
// before it.
func withInitOnCard(pod *corev1.Pod) {
	withEndedInit(pod)
	requestCards(&pod.Spec.InitContainers[0], 1)
}

// cardsOf returns the cards in the environment of a process.
func cardsOf(p testnode.Process) string {
	GinkgoHelper()
	for entry := range bytes.SplitSeq(framework.Must(os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))), []byte{0}) {
		if cards, found := bytes.CutPrefix(entry, []byte(deviceplugin.Env+"=")); found {
			return string(cards)
		}
	}
	return ""
}
