package rollout

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/hostnode"
	"kubelet-guard.io/node-e2e/vm"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

var (
	outputFlag    = flag.String("output", "", "folder with the built programs (_output); without it the test is skipped")
	manifestsFlag = flag.String("manifests", "manifests", "folder with the manifests")
)

// Images of the installer: with the guarded kubelet, and with two that are broken.
const (
	imageGood        = "localhost/guard/installer:good"
	imageNotStarting = "localhost/guard/installer:not-starting"
	imageUnguarded   = "localhost/guard/installer:unguarded"
)

const (
	pool = "machines"
	// processes are those of two pods, each with a container and a sandbox.
	processes = 4
	// nodeChange covers a start of the kubelet in the emulated machine until the API server
	// has heard of it, on a loaded machine.
	nodeChange = 10 * time.Minute
	stopTime   = 3 * time.Minute

	stockKubelet = "/usr/bin/kubelet"
	timerUnit    = "kubelet-guard-rollback.timer"
	recoverUnit  = "kubelet-guard-recover.service"
)

// guarded is the version of the guarded kubelet.
var guarded = build.GuardedVersion(framework.KubeVersion)

// rolloutTest is a node with what runs on it.
type rolloutTest struct {
	t       *testing.T
	cluster *embedded.Cluster
	client  kubernetes.Interface
	kubectl framework.Kubectl
	guest   *vm.Guest
	// processes are those of the pods, and unit is what systemd has about kubelet.service,
	// without a roll-out.
	processes, unit string
}

// TestRollOut brings the node from the stock kubelet to the guarded one and back, and breaks
// changes in the middle. No container may restart on the way, until the machine is reset.
func TestRollOut(t *testing.T) {
	if *outputFlag == "" {
		t.Skip("needs root and an emulated machine: run it by make test-rollout-vm")
	}
	output, manifests, err := framework.Folders(*outputFlag, *manifestsFlag)
	require.NoError(t, err)
	c := newMachine(t, output, manifests)
	c.mustKubectl("apply", "-k", manifests)
	c.mustKubectl("apply", "-k", filepath.Join(manifests, "rollout"))
	c.exec("systemctl start kubelet")
	c.awaitNode(framework.KubeVersion)
	c.mustKubectl("label", "node", nodeName, "pool="+pool)
	for _, name := range []string{"protected", "plain"} {
		_, err := c.client.CoreV1().Pods(metav1.NamespaceDefault).Create(t.Context(), hostnode.Pod(name, nodeName, name == "protected"), metav1.CreateOptions{})
		require.NoError(t, err)
	}
	c.awaitPods(2)
	c.processes, c.unit = c.podProcesses(), c.kubeletUnit()
	c.logf("The pods run:\n%s\n%s", c.processes, c.unit)
	if got := strings.Count(c.processes, " cgroup 0::/kubepods.slice/"); got != processes {
		t.Fatalf("%d processes in slices of systemd, must be %d", got, processes)
	}

	c.step("Audit, then Enforce", (*rolloutTest).rollOut)
	c.step("A kubelet that does not start is rolled back", func(c *rolloutTest) { c.rollBack(imageNotStarting, rollout.ReasonNotStarted) })
	c.step("A kubelet that starts unguarded is rolled back", func(c *rolloutTest) { c.rollBack(imageUnguarded, rollout.ReasonUnguarded) })
	c.step("With its installer killed, the timer rolls back", (*rolloutTest).killInstaller)
	c.step("A reset in the middle of a change is recovered from", (*rolloutTest).reset)
	c.step("Uninstall leaves nothing behind", (*rolloutTest).uninstall)
}

// step is a part of the test. Those after one that has failed are not run.
func (c *rolloutTest) step(title string, run func(*rolloutTest)) {
	if c.t.Failed() {
		return
	}
	start := time.Now()
	whole := c.t
	ok := whole.Run(title, func(t *testing.T) {
		c.t = t
		run(c)
	})
	c.t = whole
	result := "PASSED"
	if !ok {
		result = "FAILED"
	}
	c.logf("%s: %s (%s)", result, title, time.Since(start).Round(time.Second))
}

func (c *rolloutTest) rollOut() {
	c.operator("start", "--allow-tag", "--yes", "--pool", pool+"=pool="+pool, "--mode=Audit", "--image="+imageGood)
	c.expectDone(guard.Audit)
	c.operator("start", "--allow-tag", "--yes", "--pool", pool, "--mode=Enforce")
	c.expectDone(guard.Enforce)
}

func (c *rolloutTest) rollBack(image string, reason rollout.Reason) {
	before := c.kubeletProgram()
	c.operatorFails("start", "--allow-tag", "--yes", "--pool", pool, "--image="+image)
	c.expectRolledBack(before, reason)
	c.undo()
}

func (c *rolloutTest) undo() {
	// While the node is not ready, which a slow machine may be for a moment, nobody waits for it.
	c.awaitNode(guarded)
	c.operator("undo", "--pool", pool, "--yes")
	c.await("the node to report Done", func() error {
		report, err := c.report()
		if err == nil && report.Phase != rollout.Done {
			err = fmt.Errorf("%s %s: %s", report.Phase, report.Reason, report.Message)
		}
		return err
	})
	c.expectDone(guard.Enforce)
}

func (c *rolloutTest) killInstaller() {
	before := c.kubeletProgram()
	ended := make(chan framework.KubectlResult, 1)
	go func() {
		ended <- c.rollout("start", "--allow-tag", "--yes", "--pool", pool, "--image="+imageNotStarting)
	}()
	// On the node: a moment earlier the old kubelet would start the installer again, and a
	// moment later the installer has seen that the new one does not start.
	c.exec(awaitExchange + `
for process in /proc/[0-9]*; do
	if [[ $(tr '\0' ' ' <$process/cmdline) == '` + rollout.InstallerPath + ` run ' ]]; then kill -KILL "${process##*/}" && killed=yes; fi
done 2>/dev/null
[[ $killed ]] && systemctl is-active ` + timerUnit)
	c.logf("The installer is killed, the timer runs")
	if result := <-ended; result.Err == nil {
		c.t.Fatalf("%s", result)
	}
	report := c.expectRolledBack(before, rollout.ReasonInterrupted)
	if !strings.Contains(report.Message, "the node rolled it back by itself") {
		c.t.Errorf("the report is: %s", report.Message)
	}
	c.undo()
}

// awaitExchange ends when a change has ended the old kubelet and the new one does not run
// yet, or not any more.
const awaitExchange = `
before=$(systemctl show --property=MainPID --value kubelet)
drop_in() { readlink -e ` + rollout.DropIn + ` >/dev/null && cksum <` + rollout.DropIn + `; }
old=$(drop_in)
until [[ $(drop_in) != "$old" && $(systemctl show --property=MainPID --value kubelet) != "$before" ]]; do sleep 0.1; done`

// reset has the machine reset while a good kubelet is verified, in a change of the mode.
func (c *rolloutTest) reset() {
	before := c.exec("cat " + rollout.DropIn)
	// What the machine has written so far is on its disk, but not what the change writes.
	c.exec("sync")
	ended := make(chan framework.KubectlResult, 1)
	go func() {
		ended <- c.rollout("start", "--allow-tag", "--yes", "--pool", pool, "--mode=Audit")
	}()
	c.exec(awaitExchange + `
until [[ $(systemctl is-active kubelet) == active ]]; do sleep 0.1; done`)
	uids := c.podUIDs()
	report, err := c.report()
	if err != nil || report.Phase != rollout.Installing {
		c.t.Fatalf("the change is not in progress: %+v, %v", report, err)
	}
	require.NoError(c.t, c.guest.Reset(c.t.Context()))
	c.logf("The machine has booted again")
	if result := <-ended; result.Err == nil {
		c.t.Fatalf("%s", result)
	}
	report = c.expectReport(rollout.RolledBack, rollout.ReasonInterrupted)
	// Not the installer, which runs after the kubelet.
	if journal := c.exec("journalctl --boot --no-pager --output=cat --unit=" + recoverUnit); !strings.Contains(journal, `state="RolledBack"`) {
		c.t.Errorf("the journal of %s is:\n%s", recoverUnit, journal)
	}
	if report.Now.Mode != guard.Enforce {
		c.t.Errorf("the report has the mode %s", report.Now.Mode)
	}
	if now := c.exec("cat " + rollout.DropIn); now != before {
		c.t.Errorf("the drop-in is\n%s\nwas\n%s", now, before)
	}
	c.awaitNode(guarded)
	// The containers ended with the machine.
	c.await("the pods to run again", func() error {
		c.processes = c.podProcesses()
		if strings.Count(c.processes, "\n") != processes-1 || c.podUIDs() != uids {
			return fmt.Errorf("of %s run:\n%s", uids, c.processes)
		}
		return nil
	})
	c.operator("resume", "--pool", pool, "--yes")
	c.expectDone(guard.Audit)
}

func (c *rolloutTest) uninstall() {
	c.operator("uninstall", "--pool", pool, "--yes")
	c.awaitNode(framework.KubeVersion)
	if program := c.kubeletProgram(); program != stockKubelet {
		c.t.Errorf("kubelet.service runs %s", program)
	}
	c.expectUntouched()
	left := c.exec("find /etc /run/systemd /opt /usr /var/lib -not -path '/var/lib/containerd/*' \\( -name '*kubelet-guard*' -o -name '*guard-installer*' \\); " +
		"ls -d " + filepath.Dir(rollout.DropIn) + " 2>/dev/null; systemctl list-units --all --no-legend --plain 'kubelet-guard*'")
	if left != "" {
		c.t.Errorf("what is left behind:\n%s", left)
	}
	node, err := c.client.CoreV1().Nodes().Get(c.t.Context(), nodeName, metav1.GetOptions{})
	require.NoError(c.t, err)
	for name := range maps.Keys(node.Annotations) {
		if strings.Contains(name, "kubelet-guard.io") {
			c.t.Errorf("the node has the annotation %s", name)
		}
	}
}

// exec runs a script on the node.
func (c *rolloutTest) exec(script string) string {
	c.t.Helper()
	output, err := c.guest.Exec(c.t.Context(), script)
	require.NoError(c.t, err)
	return strings.TrimSpace(output)
}

func (c *rolloutTest) mustKubectl(args ...string) {
	c.t.Helper()
	if result := c.kubectl.Run(c.t.Context(), args...); result.Err != nil {
		c.t.Fatalf("%s", result)
	}
}

// rollout runs kubectl guard rollout as a user who has the role for it and the one of
// viewers, and no other.
func (c *rolloutTest) rollout(args ...string) framework.KubectlResult {
	return c.kubectl.Run(c.t.Context(), append([]string{
		"guard", "rollout", "--as=operator", "--as-group=kubelet-guard:rollout", "--as-group=kubelet-guard:viewers", "--as-group=system:authenticated",
	}, args...)...)
}

// operator is rollout that succeeds.
func (c *rolloutTest) operator(args ...string) {
	c.t.Helper()
	result := c.rollout(args...)
	if result.Err != nil {
		c.t.Fatalf("%s", result)
	}
	c.t.Logf("%s", result)
}

// operatorFails is rollout that fails.
func (c *rolloutTest) operatorFails(args ...string) {
	c.t.Helper()
	result := c.rollout(args...)
	if result.Err == nil {
		c.t.Fatalf("%s", result)
	}
	c.t.Logf("%s", result)
}

func (c *rolloutTest) report() (*rollout.Report, error) {
	node, err := c.client.CoreV1().Nodes().Get(c.t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	report, err := rollout.ReportOf(node)
	if err == nil && report == nil {
		err = errors.New("the node has no report")
	}
	return report, err
}

func (c *rolloutTest) expectReport(phase rollout.Phase, reason rollout.Reason) *rollout.Report {
	c.t.Helper()
	report, err := c.report()
	require.NoError(c.t, err)
	if report.Phase != phase || report.Reason != reason {
		c.t.Fatalf("the node reports %s %s, not %s %s: %s", report.Phase, report.Reason, phase, reason, report.Message)
	}
	if len(report.Stopped) > 0 {
		c.t.Errorf("the node reports stopped containers: %v", report.Stopped)
	}
	c.logf("Report of %s, change started at %s: %s %s: %s", report.Time.Format(time.TimeOnly), report.Started.Format(time.TimeOnly), report.Phase, report.Reason, report.Message)
	return report
}

func (c *rolloutTest) expectRolledBack(program string, reason rollout.Reason) *rollout.Report {
	c.t.Helper()
	report := c.expectReport(rollout.RolledBack, reason)
	if now := c.kubeletProgram(); now != program {
		c.t.Errorf("kubelet.service runs %s, was %s", now, program)
	}
	c.expectUntouched()
	return report
}

// expectDone checks what the API server, the kubelet and the report have after a roll-out.
func (c *rolloutTest) expectDone(mode guard.Mode) {
	c.t.Helper()
	report := c.expectReport(rollout.Done, "")
	if report.Now.Version != guarded || report.Now.Mode != mode {
		c.t.Errorf("the report has %s in mode %s, not %s in mode %s", report.Now.Version, report.Now.Mode, guarded, mode)
	}
	if program := c.kubeletProgram(); program != report.Now.Path {
		c.t.Errorf("kubelet.service runs %s, the report has %s", program, report.Now.Path)
	}
	c.awaitNode(guarded)
	var list guard.PodList
	body, err := c.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + nodeName + "/proxy" + guard.PodsPath).DoRaw(c.t.Context())
	if err == nil {
		err = json.Unmarshal(body, &list)
	}
	require.NoError(c.t, err, "%s", guard.PodsPath)
	if list.Mode != mode || len(list.Items) != 1 || list.Items[0].Name != "protected" {
		c.t.Errorf("%s in mode %s has %+v, not the protected pod in mode %s", guard.PodsPath, list.Mode, list.Items, mode)
	}
	c.expectUntouched()
}

// expectUntouched checks that the processes of the pods and their cgroups are the same as at
// the start, and the unit but for the drop-in.
func (c *rolloutTest) expectUntouched() {
	c.t.Helper()
	if now := c.podProcesses(); now != c.processes {
		c.t.Fatalf("the processes of the pods are\n%s\nwere\n%s", now, c.processes)
	}
	if now := c.kubeletUnit(); now != c.unit {
		c.t.Errorf("systemd has kubelet.service with\n%s\nnot\n%s", now, c.unit)
	}
}

// kubeletUnit is what systemd has about kubelet.service that a roll-out may not change:
// everything but the command and the roll-out's drop-in.
func (c *rolloutTest) kubeletUnit() string {
	c.t.Helper()
	return strings.Replace(c.exec("systemctl show --property=FragmentPath,DropInPaths,ControlGroup,KillMode,Restart,RestartUSec,UnitFileState,ActiveState,SubState,NeedDaemonReload,Environment,EnvironmentFiles kubelet"),
		" "+rollout.DropIn, "", 1)
}

func (c *rolloutTest) kubeletProgram() string {
	c.t.Helper()
	return c.exec(`readlink "/proc/$(systemctl show --property=MainPID --value kubelet)/exe"`)
}

// podProcesses are the processes of the test's pods, each with its start in clock ticks, in
// a line.
func (c *rolloutTest) podProcesses() string {
	c.t.Helper()
	all := c.exec(`for process in /proc/[0-9]*; do
	cgroup=$(<"$process/cgroup") && [[ $cgroup == 0::/kubepods* ]] || continue
	# The start is field 22. The second, the name, is in parentheses.
	stat=$(<"$process/stat") && stat=${stat##*) } && set -- $stat
	echo "process ${process##*/}, start ${20}, cgroup $cgroup"
done 2>/dev/null`)
	var lines []string
	for line := range strings.Lines(all) {
		for name, uid := range c.pods() {
			// In a slice's name, dashes separate it from those above.
			if strings.Contains(line, strings.ReplaceAll(uid, "-", "_")) {
				lines = append(lines, name+": "+strings.TrimSpace(line))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// pods are the UIDs of the test's pods that run, by name.
func (c *rolloutTest) pods() map[string]string {
	c.t.Helper()
	list, err := c.client.CoreV1().Pods(metav1.NamespaceDefault).List(c.t.Context(), metav1.ListOptions{})
	require.NoError(c.t, err)
	uids := map[string]string{}
	for _, pod := range list.Items {
		if len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].Ready {
			uids[pod.Name] = string(pod.UID)
		}
	}
	return uids
}

func (c *rolloutTest) podUIDs() string {
	c.t.Helper()
	var lines []string
	for name, uid := range c.pods() {
		lines = append(lines, name+" "+uid)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (c *rolloutTest) awaitPods(number int) {
	c.t.Helper()
	c.await("the pods to run", func() error {
		if uids := c.podUIDs(); strings.Count(uids, "\n") != number-1 {
			return fmt.Errorf("those that run: %s", uids)
		}
		return nil
	})
}

// awaitNode waits until the node is Ready with a kubelet of that version.
func (c *rolloutTest) awaitNode(version string) {
	c.t.Helper()
	c.await("the node to be Ready with "+version, func() error {
		return hostnode.ReadyWith(c.t.Context(), c.client, nodeName, version)
	})
}

// await waits for a change of the node.
func (c *rolloutTest) await(what string, attempt func() error) {
	c.t.Helper()
	hostnode.Await(c.t, nodeChange, what, attempt)
}
