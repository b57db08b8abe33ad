package node

import (
	"context"
	"flag"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// labelClock marks specs that set the clock of the machine that they run on.
const labelClock = "clock"

var ownClockFlag = flag.Bool("own-clock", false, "the machine is an emulated one, whose clock the specs may set")

// clockJump is much longer than what a spec takes.
const clockJump = 20 * time.Minute

// holdEnds is promised: how soon a hold has ended after its reason has gone.
const holdEnds = 3*time.Minute + apiLag

var _ = Describe("A clock that goes forward and back", Label(labelGuarded, labelClock), func() {
	It("costs no protected pod its life whose deadline seems to have passed, and leaves no hold behind", func(ctx SpecContext) {
		if !*ownClockFlag {
			Skip("the clock of this machine is not the suite's: the spec runs in an emulated one (make e2e-cgroup2)")
		}
		s := newScene(ctx)
		deadline := func(pod *corev1.Pod) { pod.Spec.ActiveDeadlineSeconds = ptr.To(int64(clockJump.Seconds() / 2)) }
		pods := s.run(ctx, s.newPod("protected", protected, deadline), s.newPod("unprotected", deadline))
		kept, lost := pods[0], pods[1]
		since := time.Now()
		back := moveClock(clockJump)
		lost.awaitDeath(ctx, since, killTimeout)
		s.awaitHeld(ctx, kept, guard.ActiveDeadlineExceeded)
		Expect(savedFile(kept)).To(BeAnExistingFile(), "the saved file of pod %s", kept)

		By("setting the clock right")
		back()
		right := time.Now()
		Eventually(func(g Gomega) {
			kept.expectAlive(g)
			expectState(g, ctx, kept, guard.Protected)
		}).WithContext(ctx).WithTimeout(holdEnds).Should(Succeed(), "the hold of pod %s ends", kept)
		framework.Progress("the hold ended %.0f s after the clock was right again", time.Since(right).Seconds())
		s.deleteExplicitly(ctx, kept)
	})
})

// moveClock moves the machine's clock; the returned function, or the spec's end, moves it
// back.
func moveClock(by time.Duration) (back func()) {
	GinkgoHelper()
	move := func(by time.Duration) {
		// Not time.Now and Add: this is about the wall clock alone.
		var now unix.Timespec
		Expect(unix.ClockGettime(unix.CLOCK_REALTIME, &now)).To(Succeed(), "read the clock")
		now.Sec += int64(by.Seconds())
		Expect(unix.ClockSettime(unix.CLOCK_REALTIME, &now)).To(Succeed(), "set the clock")
	}
	moved := true
	back = func() {
		if moved {
			move(-by)
			moved = false
		}
	}
	move(by)
	DeferCleanup(func(context.Context) { back() })
	return back
}
