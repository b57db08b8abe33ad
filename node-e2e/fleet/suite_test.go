package fleet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// Pools that the suite needs. There may be others.
const (
	poolStock   = "stock"
	poolGuarded = "guarded"
)

const (
	// pollInterval is short against what kubelets and controllers need to react.
	pollInterval = 250 * time.Millisecond
	// specTimeout bounds a spec that sets none of its own.
	specTimeout = 3 * time.Minute
	// collectTimeout bounds the requests to a cluster that may be broken.
	collectTimeout = time.Minute
	// cleanTimeout bounds the clean-up of a spec.
	cleanTimeout = 3 * time.Minute
)

var (
	clusterFlag   = flag.String("cluster", "", "name of a kind cluster that is up; empty skips the suite")
	outputFlag    = flag.String("output", "_output", "folder with the built programs and kind/; receives e2e/")
	manifestsFlag = flag.String("manifests", "manifests", "folder with the manifests")
	pairFlag      = flag.Int("pair", 1, "which of the workers of the pools stock and guarded to compare, counted from 1, for suites that run on one cluster at the same time; 0 is none")
	keepFlag      = flag.Bool("keep", false, "leave the namespaces of failed specs as they are")
)

// The run that this process makes: set before the first spec, read by all.
var (
	outputDir    string
	manifestsDir string
	cluster      *kind.Cluster
	adminConfig  *rest.Config
	// client and dynamicClient act as the administrator.
	client        kubernetes.Interface
	dynamicClient dynamic.Interface
)

// Labels of specs, by which they are divided among suites that run at the same time.
const (
	// labelAway marks specs that wait for what happens to nodes that are away or deleted.
	labelAway = "away"
	// labelRollout marks specs of roll-outs, which compare no workers: of the pools blue and
	// green, and, where labelFaults stands too, of the pool red.
	labelRollout = "rollout"
	labelFaults  = "faults"
	// labelLong marks specs that make test leaves out, because they wait for eight minutes
	// or more.
	labelLong = "long"
	// labelUpgrade marks specs that need a cluster of the previous minor version.
	labelUpgrade = "upgrade"
)

// stockNode and guardedNode are the two workers that are compared.
func stockNode() *kind.Node   { return cluster.Pool(poolStock)[*pairFlag-1] }
func guardedNode() *kind.Node { return cluster.Pool(poolGuarded)[*pairFlag-1] }

// workers are both, or none in a suite that compares none.
func workers() []*kind.Node {
	if *pairFlag == 0 {
		return nil
	}
	return []*kind.Node{stockNode(), guardedNode()}
}

// ownNodes are all nodes but the workers that other suites compare, which may be cut
// off or frozen.
func ownNodes() []*kind.Node {
	return slices.DeleteFunc(cluster.Nodes(), func(node *kind.Node) bool {
		return (node.Pool() == poolStock || node.Pool() == poolGuarded) && !slices.Contains(workers(), node)
	})
}

// specLog reports on the specs of this suite.
var specLog = specreport.NewLog()

func TestFleet(t *testing.T) {
	if *clusterFlag == "" {
		t.Skip("the suite needs a kind cluster: run it with -cluster=NAME (see make e2e-kind)")
	}
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	// Cleaning up brings nodes back that are cut off.
	framework.Run(t, framework.Settings{Title: "Fleet suite", Log: specLog, PollInterval: pollInterval, GracePeriod: cleanTimeout})
}

// prepare sets the folders of the run and checks that the programs are built.
func prepare() error {
	var err error
	if outputDir, manifestsDir, err = framework.Folders(*outputFlag, *manifestsFlag); err != nil {
		return err
	}
	return framework.Prepare(artifactsDir(), "make e2e-kind", kubectlProgram(), pluginProgram(), webhookProgram(), manifestsDir)
}

// artifactsDir is where a run leaves what explains it.
func artifactsDir() string { return filepath.Join(outputDir, "e2e", "fleet") }

var _ = BeforeSuite(func(ctx SpecContext) {
	var err error
	cluster, err = kind.Attach(ctx, outputDir, *clusterFlag)
	Expect(err).NotTo(HaveOccurred(), "find the cluster %s; bring it up with go run ./node-e2e/guard-e2e kind up --name %s", *clusterFlag, *clusterFlag)
	adminConfig = rest.CopyConfig(cluster.RESTConfig())
	// Specs poll; the client's default of 5 requests a second would make their figures
	// those of its rate limiter.
	adminConfig.QPS, adminConfig.Burst = 200, 400
	client = kubernetes.NewForConfigOrDie(adminConfig)
	dynamicClient = dynamic.NewForConfigOrDie(adminConfig)
	for _, pool := range []string{poolStock, poolGuarded} {
		Expect(len(cluster.Pool(pool))).To(BeNumerically(">=", *pairFlag), "nodes of the pool %s (--pools %s=N,%s=N:guarded)", pool, poolStock, poolGuarded)
	}
	for _, node := range workers() {
		Expect(node.Guarded()).To(Equal(node.Pool() == poolGuarded), "the kubelet of node %s is the guarded one", node.Name())
	}
	awaitReady(ctx, ownNodes()...)
	oneAtATime(func() { kubectl(ctx, "apply", "-k", manifestsDir) })
	if len(workers()) > 0 {
		framework.Progress("comparing %s with %s", stockNode().Name(), guardedNode().Name())
	}
}, NodeTimeout(2*time.Minute))

// found reports a figure that a spec is about, as progress and in the suite's report.
func found(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	AddReportEntry("found", ReportEntryVisibilityNever, line)
	framework.Progress("found: %s", line)
}

// oneAtATime calls f while no other suite on this machine is in it: what is installed
// once for the cluster must not be installed by two at the same time.
func oneAtATime(f func()) {
	GinkgoHelper()
	lock := framework.Must(os.Create(filepath.Join(artifactsDir(), "install.lock")))
	defer lock.Close()
	Expect(unix.Flock(int(lock.Fd()), unix.LOCK_EX)).To(Succeed())
	f()
}

// inParallel calls f for several things at the same time and joins the errors.
func inParallel[T any](things []T, f func(T) error) error {
	errs := make([]error, len(things))
	var wait sync.WaitGroup
	for i, thing := range things {
		wait.Go(func() { errs[i] = f(thing) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// atOnce calls f for each of the nodes at the same time. The functions may assert.
func atOnce(ctx context.Context, nodes []*kind.Node, f func(ctx context.Context, node *kind.Node)) {
	GinkgoHelper()
	var wait sync.WaitGroup
	for _, node := range nodes {
		wait.Go(func() {
			defer GinkgoRecover()
			f(ctx, node)
		})
	}
	wait.Wait()
}

func kubectlProgram() string { return filepath.Join(outputDir, framework.KubeVersion, "kubectl") }
func pluginProgram() string  { return filepath.Join(outputDir, "bin", "kubectl-guard") }
func webhookProgram() string { return filepath.Join(outputDir, "bin", "guard-webhook") }

// kubectl runs the real kubectl as the administrator, with the project's plugin, and
// returns what it printed. It fails the spec unless kubectl succeeds.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	return tryKubectl(ctx, args...).ExpectDone().Stdout
}

// tryKubectl is kubectl for commands that may fail.
func tryKubectl(ctx context.Context, args ...string) framework.KubectlResult {
	return framework.Kubectl{Program: kubectlProgram(), Kubeconfig: cluster.Kubeconfig(), PluginDir: filepath.Dir(pluginProgram())}.Run(ctx, args...)
}

// collect writes what explains a failure into the artifacts folder, before any
// clean-up removes it. It must not fail itself: it runs when something is broken
// already.
func collect(ctx context.Context) {
	artifacts := specLog.NewArtifacts(artifactsDir())
	for file, args := range map[string][]string{
		"nodes.yaml":  {"get", "nodes", "-o", "yaml"},
		"pods.txt":    {"get", "pods", "-A", "-o", "wide"},
		"webhook.txt": {"logs", "-n", webhookinstall.Namespace, "-l", webhookinstall.Selector, "--tail=1000", "--prefix"},
		"events.txt":  {"get", "events", "-n", "default", "--sort-by=.lastTimestamp"},
	} {
		result := tryKubectl(ctx, args...)
		artifacts.Keep(file, []byte(result.Output()), nil)
	}
	for _, scene := range scenes {
		result := tryKubectl(ctx, "get", "deployments,replicasets,statefulsets,daemonsets,pods,events,poddisruptionbudgets", "-n", scene.namespace, "-o", "yaml")
		artifacts.Keep(scene.namespace+".yaml", []byte(result.Output()), nil)
	}
	// Errors are kept as files.
	_ = inParallel(ownNodes(), func(node *kind.Node) error {
		running, err := node.Containers(ctx)
		text := ""
		for _, c := range running {
			text += fmt.Sprintf("%s %s/%s %s pid %d since %s\n", c.ID, c.PodNamespace, c.PodName, c.Name, c.PID, c.StartedAt.UTC().Format("15:04:05.000"))
		}
		artifacts.Keep(node.Name()+"-containers.txt", []byte(text), err)
		journal, err := node.Exec(ctx, "journalctl", "--unit=kubelet", "--no-pager", "--lines=3000")
		artifacts.Keep(node.Name()+"-kubelet.log", []byte(journal), err)
		if node.Guarded() {
			state, err := getFromKubelet(ctx, node, guard.PodsPath)
			artifacts.Keep(node.Name()+"-guard-pods.json", state, err)
		}
		return nil
	})
	framework.Progress("artifacts: %s", artifacts.Dir)
}
