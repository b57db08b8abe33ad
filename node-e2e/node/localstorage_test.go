package node

import (
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var _ = Describe("A volume that grows beyond its size limit", Label(labelGuarded), func() {
	It("costs no protected pod its life or its content, over a kubelet restart, too", func(ctx SpecContext) {
		content := strings.Repeat("written beyond the limit\n", 400)
		s := newScene(ctx)
		// How much is in a volume is looked up once a minute otherwise.
		often := testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.VolumeStatsAggPeriod = metav1.Duration{Duration: time.Second}
		}}
		restartKubelet(ctx, often)
		overLimit := []podOption{
			withArgs("--file=/data/file", "--content="+content), withEmptyDir("/data"),
			func(pod *corev1.Pod) {
				pod.Spec.Volumes[0].EmptyDir.SizeLimit = resource.NewQuantity(4096, resource.BinarySI)
			},
		}
		pods := s.run(ctx, s.newPod("protected", append(overLimit, protected)...), s.newPod("unprotected", overLimit...))
		kept, evicted := pods[0], pods[1]
		evicted.awaitDeath(ctx, time.Now(), evictionTimeout)
		s.awaitHeld(ctx, kept, guard.Evicted)
		restartKubelet(ctx, often)
		Eventually(func(g Gomega) {
			kept.expectAlive(g)
			expectState(g, ctx, kept, guard.Held, guard.Evicted)
			expectFile(g, ctx, kept, workloadPort, content)
		}).WithContext(ctx).WithTimeout(evictionTimeout).Should(Succeed(), "pod %s is held again", kept)
		s.deleteExplicitly(ctx, kept)
	})
})
