package controlplane

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
)

var notInFileNames = regexp.MustCompile(`[^a-zA-Z0-9]+`)

// brief is a failure message on one line, as far as it fits a progress line.
func brief(message string) string {
	const limit = 400
	line := []rune(strings.Join(strings.Fields(message), " "))
	if len(line) > limit {
		return string(line[:limit]) + "..."
	}
	return string(line)
}

// collectTimeout bounds what is asked of a cluster that may be broken.
const collectTimeout = 30 * time.Second

var _ = AfterEach(func(ctx SpecContext) {
	if CurrentSpecReport().Failed() {
		collect(ctx)
	}
}, NodeTimeout(collectTimeout))

// collect writes what explains a failure into the artifacts folder. It must not
// fail itself: it runs when something is broken already.
func collect(ctx context.Context) {
	report := CurrentSpecReport()
	name := strings.Trim(notInFileNames.ReplaceAllString(report.LeafNodeText, "-"), "-")
	dir := filepath.Join(artifactsDir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		GinkgoWriter.Printf("artifacts: %v\n", err)
		return
	}
	keep := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			GinkgoWriter.Printf("artifacts: %v\n", err)
		}
	}
	if report.NumAttempts < report.MaxFlakeAttempts {
		progress("%s: failed at attempt %d and is repeated: %s", report.FullText(), report.NumAttempts, brief(report.FailureMessage()))
	}
	keep("failure.txt", report.StartTime.Format(time.RFC3339)+"\n"+report.FailureMessage()+"\n")
	for file, args := range map[string][]string{
		"objects.yaml":       {"get", "deployments,replicasets,statefulsets,pods,events,poddisruptionbudgets", "-A", "-o", "yaml"},
		"admission.yaml":     {"get", "validatingadmissionpolicies,validatingadmissionpolicybindings,validatingwebhookconfigurations,mutatingadmissionpolicies", "-o", "yaml"},
		"webhook-log.txt":    {"logs", "-n", guardNamespace, "-l", webhookSelector, "--tail=2000", "--prefix"},
		"webhook-before.txt": {"logs", "-n", guardNamespace, "-l", webhookSelector, "--tail=2000", "--prefix", "--previous"},
	} {
		answer := kubectl(ctx, args...)
		keep(file, answer.stdout+answer.stderr)
	}
	progress("artifacts: %s", dir)
}
