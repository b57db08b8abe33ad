// Package framework has what the Ginkgo suites of this project share, apart from their
// reports (package specreport): how they find what make has built (Folders, Prepare), set
// Ginkgo and Gomega up (Run), fail for a call's error (Must, Try), run kubectl (Kubectl), build
// and delete pods, and read the guard's metrics and holds (Metrics, ParseGuardPods). The
// periods that hold on every node are here, too (APILag, KillTimeout, HoldPeriod).
package framework

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"github.com/onsi/gomega/format"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/framework/specreport"
)

// KubeVersion is the upstream version that the suites are written for: the name of the
// folder with the control plane and kubectl, below the one of all built programs.
const KubeVersion = build.KubeVersion

// Settings are those of a suite's run.
type Settings struct {
	// Title is the suite's name in Ginkgo's report.
	Title string
	// Log reports on the specs.
	Log *specreport.Log
	// PollInterval is the time between two attempts of Eventually and Consistently.
	PollInterval time.Duration
	// LabelFilter changes the user's filter of specs; nil leaves it as it is.
	LabelFilter func(user string) string
	// GracePeriod is how long cleaning up may take after Ctrl-C. Ginkgo's own default
	// would leave clusters and broken nodes behind.
	GracePeriod time.Duration
}

// Run runs the specs of this program. What Kubernetes' libraries log becomes part of
// the failing spec's output.
func Run(t *testing.T, s Settings) {
	klog.LogToStderr(false)
	klog.SetOutput(ginkgo.GinkgoWriter)
	ctrllog.SetLogger(ginkgo.GinkgoLogr)
	// Objects of the API are longer than Gomega's default allows.
	format.MaxLength = 8000
	gomega.RegisterFailHandler(ginkgo.Fail)
	gomega.SetDefaultEventuallyPollingInterval(s.PollInterval)
	gomega.SetDefaultConsistentlyPollingInterval(s.PollInterval)
	gomega.EnforceDefaultTimeoutsWhenUsingContexts()

	suiteConfig, reporterConfig := ginkgo.GinkgoConfiguration()
	suiteConfig.GracePeriod = s.GracePeriod
	if s.LabelFilter != nil {
		suiteConfig.LabelFilter = s.LabelFilter(suiteConfig.LabelFilter)
	}
	ginkgo.RunSpecs(t, s.Title, suiteConfig, s.Log.TakeReports(reporterConfig))
}

// Progress prints what happens, for the user, on standard error, apart from
// Ginkgo's report.
func Progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Folders makes the values of the flags -output and -manifests absolute, since parts of
// a cluster that get them run in folders of their own.
func Folders(output, manifests string) (absoluteOutput, absoluteManifests string, err error) {
	if absoluteOutput, err = filepath.Abs(output); err != nil {
		return "", "", fmt.Errorf("-output: %w", err)
	}
	if absoluteManifests, err = filepath.Abs(manifests); err != nil {
		return "", "", fmt.Errorf("-manifests: %w", err)
	}
	return absoluteOutput, absoluteManifests, nil
}

// Prepare checks that the files and folders that a run needs are there, so that a
// missing one is reported before a cluster or a spec starts, and makes the folder for
// artifacts, which is below that of -output. The target is what builds all of them.
func Prepare(artifacts, target string, needed ...string) error {
	for _, path := range needed {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("not built (%s builds all): %w", target, err)
		}
	}
	if err := os.MkdirAll(artifacts, 0o755); err != nil {
		return fmt.Errorf("-output: %w", err)
	}
	return nil
}
