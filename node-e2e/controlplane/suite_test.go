package controlplane

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
	"kubelet-guard.io/node-e2e/images"
)

// Labels of specs.
const (
	// labelPolicies marks specs of what the API server decides by itself.
	labelPolicies = "policies"
	// labelOutage marks specs that stop the webhook.
	labelOutage = "outage"
	// labelInstall marks specs that install, switch over or remove the manifests.
	labelInstall = "install"
)

// Waits that concern the whole suite.
const (
	// clusterStart covers a first start on a loaded two-core machine and the roll-out
	// of the webhook; together they take half a minute on an idle one.
	clusterStart = 4 * time.Minute
	// clusterStop covers the end of all containers and of the control plane.
	clusterStop = 2 * time.Minute
	// specTimeout bounds a spec that sets none of its own.
	specTimeout = 2 * time.Minute
	// pollInterval is short against what a controller needs to react.
	pollInterval = 200 * time.Millisecond
)

var (
	clusterFlag   = flag.String("cluster", "", "name of the cluster; empty skips the suite")
	outputFlag    = flag.String("output", "_output", "folder with the built programs; receives clusters/ and e2e/")
	manifestsFlag = flag.String("manifests", "manifests", "folder with the manifests")
	webhookFlag   = flag.Bool("webhook", true, "wait for the webhook after installing it; without it, only specs with the label policies can pass")
	versionFlag   = flag.String("kubernetes-version", framework.KubeVersion, "version of control plane and kubelet, a folder of <output>")
	benchFlag     = flag.Bool("bench", false, "measure (specs with the label bench); they are skipped otherwise")
	keepFlag      = flag.Bool("keep", false, "leave the cluster up and print how to use kubectl on it")
)

// The run that this process makes: set before the first spec, read by all.
var (
	outputDir    string
	manifestsDir string
	cluster      *embedded.Cluster
	adminConfig  *rest.Config
	// client and dynamicClient act as the administrator.
	client        kubernetes.Interface
	dynamicClient dynamic.Interface
	clusterLog    *os.File
)

// specLog reports on the specs of this suite.
var specLog = specreport.NewLog()

func TestControlPlane(t *testing.T) {
	if *clusterFlag == "" {
		t.Skip("the suite starts a cluster: run it with -cluster=NAME (see make test-controlplane)")
	}
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	// Cleaning up takes a cluster's stop.
	framework.Run(t, framework.Settings{Title: "Control plane suite", Log: specLog, PollInterval: pollInterval, GracePeriod: clusterStop})
}

// prepare sets the folders of the run and checks that the programs are built.
func prepare() error {
	var err error
	if outputDir, manifestsDir, err = framework.Folders(*outputFlag, *manifestsFlag); err != nil {
		return err
	}
	if err := framework.Prepare(artifactsDir(), "make test-controlplane", webhookProgram(), kubectlProgram(), manifestsDir); err != nil {
		return err
	}
	// A copy: a run is of one state of the manifests, also while they are edited.
	manifests := filepath.Join(artifactsDir(), "manifests")
	if err := os.RemoveAll(manifests); err != nil {
		return fmt.Errorf("-output: %w", err)
	}
	if err := os.CopyFS(manifests, os.DirFS(manifestsDir)); err != nil {
		return fmt.Errorf("-manifests: %w", err)
	}
	manifestsDir = manifests
	if clusterLog, err = os.Create(filepath.Join(artifactsDir(), "cluster.log")); err != nil {
		return fmt.Errorf("-output: %w", err)
	}
	return nil
}

func webhookProgram() string { return filepath.Join(outputDir, "bin", "guard-webhook") }
func kubectlProgram() string { return filepath.Join(outputDir, *versionFlag, "kubectl") }

// kubernetes135 reports whether the cluster is of the oldest version, whose API server has no
// MutatingAdmissionPolicy of version v1 and no static manifests.
func kubernetes135() bool { return strings.HasPrefix(*versionFlag, "v1.35.") }

// needs136 skips the spec on a cluster of an older version.
func needs136(what string) {
	if kubernetes135() {
		Skip("Kubernetes 1.36 has " + what)
	}
}

// artifactsDir is where a run leaves what explains it.
func artifactsDir() string { return filepath.Join(outputDir, "e2e", "controlplane") }

var _ = BeforeSuite(func(ctx SpecContext) {
	framework.Progress("starting a cluster")
	started := time.Now()
	var err error
	cluster, err = startCluster(ctx, *clusterFlag)
	Expect(err).NotTo(HaveOccurred(), "start the cluster; its log is %s", clusterLog.Name())
	DeferCleanup(stopCluster, NodeTimeout(clusterStop))
	adminConfig = cluster.RESTConfig()
	client = kubernetes.NewForConfigOrDie(adminConfig)
	dynamicClient = dynamic.NewForConfigOrDie(adminConfig)
	framework.Progress("node %s is Ready after %.0f s", cluster.NodeName(), time.Since(started).Seconds())
	if !*keepFlag {
		DeferCleanup(func(ctx SpecContext) { awaitNamespacesGone(ctx) }, NodeTimeout(clusterStop))
	}
	createUsers(ctx)
	install(ctx, overlayEnforce)
	framework.Progress("the control plane is installed and effective after %.0f s", time.Since(started).Seconds())
}, NodeTimeout(clusterStart))

// startCluster starts an embedded cluster that knows the webhook's image and
// writes an audit log.
func startCluster(ctx context.Context, name string) (*embedded.Cluster, error) {
	dir := filepath.Join(outputDir, "clusters", name)
	policy := filepath.Join(artifactsDir(), "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	admission, err := admissionConfiguration(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, err
	}
	flags := []string{
		"--audit-policy-file=" + policy,
		"--audit-log-path=" + filepath.Join(dir, "logs", auditLogFile),
		// A spec waits for its own entry.
		"--audit-log-mode=blocking",
		"--admission-control-config-file=" + admission,
	}
	if !kubernetes135() {
		// The folder of static manifests is empty but in one spec.
		flags = append(flags, "--feature-gates=ManifestBasedAdmissionControlConfig=true")
	}
	return embedded.Start(ctx, embedded.Config{
		Name:           name,
		Dir:            dir,
		KubeDir:        filepath.Join(outputDir, *versionFlag),
		NodeDir:        filepath.Join(outputDir, "node", "bin"),
		Kubelet:        filepath.Join(outputDir, *versionFlag, "kubelet"),
		Log:            clusterLog,
		Images:         []images.Image{images.Program(webhookinstall.Image, webhookProgram())},
		APIServerFlags: flags,
	})
}

func stopCluster(ctx context.Context) {
	if *keepFlag {
		Expect(errors.Join(cluster.Detach(), clusterLog.Close())).To(Succeed(), "leave the cluster up")
		framework.Progress("the cluster is left up; use it with\n    %s --kubeconfig %s get pods -A\nand remove it with\n    %s down %s",
			kubectlProgram(), cluster.Kubeconfig(), filepath.Join(outputDir, "bin", "guard-e2e"), cluster.Name())
		return
	}
	framework.Progress("stopping the cluster")
	Expect(errors.Join(cluster.Stop(ctx), clusterLog.Close())).To(Succeed(), "stop the cluster")
}

// collectTimeout bounds the requests to a cluster that may be broken.
const collectTimeout = 30 * time.Second

var _ = AfterEach(func(ctx SpecContext) {
	if CurrentSpecReport().Failed() {
		collect(ctx)
	}
}, NodeTimeout(collectTimeout))

// collect writes what explains a failure into the artifacts folder. It must not
// fail itself: it runs when something is broken already.
func collect(ctx context.Context) {
	artifacts := specLog.NewArtifacts(artifactsDir())
	for file, args := range map[string][]string{
		"objects.yaml":       {"get", "deployments,replicasets,statefulsets,pods,events,poddisruptionbudgets", "-A", "-o", "yaml"},
		"admission.yaml":     {"get", strings.Join(admissionResources(), ","), "-o", "yaml"},
		"webhook-log.txt":    {"logs", "-n", guardNamespace, "-l", webhookSelector, "--tail=2000", "--prefix"},
		"webhook-before.txt": {"logs", "-n", guardNamespace, "-l", webhookSelector, "--tail=2000", "--prefix", "--previous"},
	} {
		result := kubectl(ctx, args...)
		artifacts.Keep(file, []byte(result.Output()), nil)
	}
	framework.Progress("artifacts: %s", artifacts.Dir)
}

// auditLogFile is in the cluster's log folder.
const auditLogFile = "audit.log"

// auditPolicy logs writes, and all that the webhook does itself, which shows what of its
// rights it uses. Annotations of admission are part of the metadata.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["system:serviceaccount:kubelet-guard-system:guard-webhook"]
  - level: None
    resources:
      - group: coordination.k8s.io
      - group: ""
        resources: [events]
      - group: events.k8s.io
  - level: Metadata
    verbs: [create, update, patch, delete, deletecollection]
`

// auditWait covers the time between a response and its entry in the log.
const auditWait = 10 * time.Second

// auditEntry waits for an entry of the audit log that was written after since and
// that the condition holds for.
func auditEntry(ctx context.Context, since time.Time, what string, match func(auditv1.Event) bool) auditv1.Event {
	GinkgoHelper()
	var found auditv1.Event
	Eventually(ctx, func() error {
		entries, err := auditEntries(since)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if match(entry) {
				found = entry
				return nil
			}
		}
		return fmt.Errorf("none of %d entries", len(entries))
	}).WithTimeout(auditWait).Should(Succeed(), "an entry of the audit log: %s", what)
	return found
}

// auditEntries reads the entries of requests that were received after since.
func auditEntries(since time.Time) ([]auditv1.Event, error) {
	return framework.ReadAudit(filepath.Join(cluster.LogDir(), auditLogFile), since)
}
