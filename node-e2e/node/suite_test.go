package node

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// Labels of specs.
const (
	// labelIncident marks the rows of the demonstration's table.
	labelIncident = "incident"
	// labelGuarded marks specs that only a guarded kubelet can pass.
	labelGuarded = "guarded"
	// labelTransparency marks specs in which both kubelets must behave alike.
	labelTransparency = "transparency"
	// labelCgroup2 marks specs whose fault needs cgroup v2; elsewhere they are skipped.
	labelCgroup2 = "cgroup2"
)

// Waits that concern the whole suite.
const (
	// clusterStart covers a first start on a loaded two-core machine; 30 s is what
	// it takes on an idle one.
	clusterStart = 3 * time.Minute
	// clusterStop covers the end of all containers and of the control plane.
	clusterStop = 2 * time.Minute
	// kubeletStart covers a kubelet that has to recover its pods first.
	kubeletStart = time.Minute
	// pollInterval is well below the second in which the table states its figures.
	pollInterval = 200 * time.Millisecond
)

var (
	providerFlag  = flag.String("provider", "local", "who runs the cluster: local, or kind for one that is up (-cluster)")
	kubeletFlag   = flag.String("kubelet", "", "which kubelet the node runs: stock or guarded; empty skips the suite")
	binaryFlag    = flag.String("kubelet-binary", "", "path of the kubelet (default <output>/bin/kubelet-stock or <output>/bin/kubelet)")
	outputFlag    = flag.String("output", "_output", "folder with the built programs; receives clusters/ and e2e/")
	clusterFlag   = flag.String("cluster", "", "name of the cluster (default: the value of -kubelet)")
	manifestFlag  = flag.String("manifests", "manifests", "folder with the manifests that a cluster of guarded nodes needs")
	attachedFlag  = flag.Bool("attached", false, "clean up and end, as on an interrupt, when standard input ends: for a caller that may die")
	artifactsFlag = flag.String("artifacts", "", "folder in <output>/e2e for what explains a failure (default: the kubelet)")
	keepFlag      = flag.Bool("keep", false, "leave the cluster up and print how to use kubectl on it")

	kubeletVersionFlag      = flag.String("kubelet-version", "", "version of the kubelet, a folder of <output>, instead of what is in <output>/bin")
	controlPlaneVersionFlag = flag.String("control-plane-version", "", "version of the control plane, a folder of <output> (default: that of the suite)")
)

// The run that this process makes: set before the first spec, read by all.
var (
	variant    Variant
	outputDir  string
	provider   Provider
	client     kubernetes.Interface
	clusterLog io.WriteCloser
	// kubeletVersion is what the node reports of its kubelet.
	kubeletVersion string
)

func TestNode(t *testing.T) {
	if *kubeletFlag == "" {
		t.Skip("the node suite starts a cluster: run it with -kubelet=stock or -kubelet=guarded (see guard-e2e)")
	}
	var err error
	if variant, err = ParseVariant(*kubeletFlag); err != nil {
		t.Fatalf("-kubelet: %v", err)
	}
	if provider, err = suiteProvider(); err != nil {
		t.Fatal(err)
	}
	if *attachedFlag {
		// A caller that dies leaves a broken pipe where the progress goes, which must
		// not end this program before its cluster is removed.
		signal.Ignore(syscall.SIGPIPE)
		go interruptAtEOF(os.Stdin)
	}
	framework.Run(t, framework.Settings{
		Title: fmt.Sprintf("Node suite, %s kubelet", variant), Log: specLog, PollInterval: pollInterval,
		LabelFilter: func(user string) string { return labelFilter(user, variant, *providerFlag) },
		// Cleaning up takes a cluster's stop, which must not be cut short after Ctrl-C.
		GracePeriod: clusterStop,
	})
}

// interruptAtEOF interrupts this process, once, when the input ends. A second
// interrupt would be an order to skip the clean-up.
func interruptAtEOF(input io.Reader) {
	_, _ = io.Copy(io.Discard, input)
	_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
}

// suiteProvider makes the provider that the flags select and checks that the
// programs are built, so that a missing one is reported before a cluster starts.
func suiteProvider() (Provider, error) {
	var err error
	if outputDir, err = filepath.Abs(*outputFlag); err != nil {
		return nil, fmt.Errorf("-output: %w", err)
	}
	binary := *binaryFlag
	if binary == "" {
		binary = kubeletBinary(variant)
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return nil, fmt.Errorf("-kubelet-binary: %w", err)
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("the %s kubelet is not built (make kubelet kubelet-stock): %w", variant, err)
	}
	name := *clusterFlag
	if name == "" {
		name = string(variant)
	}
	if err := os.MkdirAll(artifactsDir(), 0o755); err != nil {
		return nil, fmt.Errorf("-output: %w", err)
	}
	if clusterLog, err = os.Create(filepath.Join(artifactsDir(), "cluster.log")); err != nil {
		return nil, fmt.Errorf("-output: %w", err)
	}
	var apiServerFlags []string
	if *countersFlag != "" {
		if apiServerFlags, err = auditFlags(); err != nil {
			return nil, fmt.Errorf("-output: %w", err)
		}
	}
	p, err := NewProvider(*providerFlag, Options{
		ClusterName:   name,
		OutputDir:     outputDir,
		Kubelet:       variant,
		KubeletBinary: binary,

		ControlPlaneVersion: *controlPlaneVersionFlag,
		Log:                 clusterLog,

		APIServerFlags: apiServerFlags,
	})
	if err != nil {
		return nil, fmt.Errorf("-provider: %w", err)
	}
	return p, nil
}

// kubeletBinary is where the build puts a kubelet.
func kubeletBinary(v Variant) string {
	name := map[Variant]string{Stock: "kubelet-stock", Guarded: "kubelet"}[v]
	return filepath.Join(outputDir, cmp.Or(*kubeletVersionFlag, "bin"), name)
}

// labelFilter adds to the user's filter that a stock kubelet cannot pass guarded
// specs, that the nodes of a kind cluster share the control plane, and that they are
// not this machine.
func labelFilter(user string, v Variant, provider string) string {
	var terms []string
	if user != "" {
		terms = append(terms, "("+user+")")
	}
	if v == Stock {
		terms = append(terms, "!"+labelGuarded)
	}
	if provider == "kind" {
		terms = append(terms, "!"+labelControlPlane, "!"+labelOwnMachine)
	}
	return strings.Join(terms, " && ")
}

func TestLabelFilter(t *testing.T) {
	for _, tc := range []struct {
		user     string
		v        Variant
		provider string
		want     string
	}{
		{"", Guarded, "local", ""},
		{"", Stock, "local", "!guarded"},
		{"incident", Guarded, "local", "(incident)"},
		{"incident || transparency", Stock, "local", "(incident || transparency) && !guarded"},
		{"incident", Stock, "kind", "(incident) && !guarded && !control-plane && !own-machine"},
	} {
		if got := labelFilter(tc.user, tc.v, tc.provider); got != tc.want {
			t.Errorf("labelFilter(%q, %s, %s) = %q, want %q", tc.user, tc.v, tc.provider, got, tc.want)
		}
		if _, err := types.ParseLabelFilter(tc.want); err != nil {
			t.Errorf("filter %q: %v", tc.want, err)
		}
	}
}

var _ = BeforeSuite(func(ctx SpecContext) {
	framework.Progress("starting a cluster with the %s kubelet", variant)
	DeferCleanup(stopCluster, NodeTimeout(clusterStop))
	started := time.Now()
	Expect(provider.Start(ctx)).To(Succeed(), "start the cluster; its log is %s", filepath.Join(artifactsDir(), "cluster.log"))
	config := rest.CopyConfig(provider.RESTConfig())
	// Specs poll; the client's default of 5 requests a second would make their
	// figures those of its rate limiter.
	config.QPS, config.Burst = 200, 400
	DeferCleanup(func(ctx SpecContext) { takeFailures(ctx).expectNone() }, NodeTimeout(kubeletStart))
	client = framework.Must(kubernetes.NewForConfig(config))
	kubeletVersion = framework.Must(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})).Status.NodeInfo.KubeletVersion
	AddReportEntry(kubeletVersionEntry, ReportEntryVisibilityNever, kubeletVersion)
	framework.Progress("node %s is Ready after %.0f s, kubelet %s", provider.Node().Name(), time.Since(started).Seconds(), kubeletVersion)
}, NodeTimeout(clusterStart))

func stopCluster(ctx context.Context) {
	if *keepFlag && client != nil {
		Expect(errors.Join(provider.Keep(ctx), clusterLog.Close())).To(Succeed(), "leave the cluster up")
		framework.Progress("the cluster is left up; use it with\n    %s get nodes,pods -A\nand remove it with\n    %s", provider.Kubectl(), provider.Down())
		return
	}
	framework.Progress("stopping the cluster")
	err := provider.Stop(ctx)
	Expect(errors.Join(err, clusterLog.Close())).To(Succeed(), "stop the cluster")
}

// artifactsDir is where a failed spec leaves what explains it.
func artifactsDir() string {
	return filepath.Join(outputDir, "e2e", cmp.Or(*artifactsFlag, string(variant)))
}

// specLog reports on the specs of this suite. Its final failures are a pod that died, a
// deletion that was not honoured, and a guard that failed.
var specLog = specreport.NewLog()

// collect writes what explains a failure into the artifacts folder. It must not
// fail itself: it runs when something is broken already.
func (s *scene) collect(ctx context.Context) {
	artifacts := specreport.NewArtifacts(artifactsDir(), CurrentSpecReport())
	keep := artifacts.Keep
	log, err := os.ReadFile(provider.Node().Kubelet().LogPath())
	keep("kubelet.log", log, err)
	for name, path := range map[string]string{"metrics.txt": "/metrics", "guard-pods.json": guard.PodsPath, "kubelet-pods.json": "/pods"} {
		if variant == Stock && path == guard.PodsPath {
			continue
		}
		response, err := provider.Node().Kubelet().Get(ctx, path)
		keep(name, response, err)
	}
	pods, err := s.describePods(ctx)
	keep("pods.yaml", pods, err)
	events, err := client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{})
	text, marshalErr := yaml.Marshal(events)
	if err == nil {
		err = marshalErr
	}
	keep("events.yaml", text, err)
	containers, err := provider.Node().Runtime().Containers(ctx)
	keep("containers.txt", fmt.Appendf(nil, "%+v\n", containers), err)
	framework.Progress("artifacts: %s", artifacts.Dir)
}

func (s *scene) describePods(ctx context.Context) ([]byte, error) {
	pods, err := client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		pods.Items[i].ManagedFields = nil
	}
	return yaml.Marshal(pods)
}
