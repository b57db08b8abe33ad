package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/specreport"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// recorded is what this run found, filled by specs and completed by the report.
var recorded Results

var _ = ReportAfterSuite("results", func(report Report) {
	if report.PreRunStats.SpecsThatWillRun == 0 {
		return
	}
	report, overruled := final.Overrule(report)
	recorded.Kubelet, recorded.Duration = variant, report.RunTime
	counts := specFormat.Count(report)
	recorded.Passed, recorded.Failed = counts.Passed, counts.Failed
	recorded.Failures = specFormat.Failures(report)
	for _, spec := range report.SpecReports {
		// Each attempt has an entry of its own; what counts is the last.
		for _, entry := range slices.Backward(spec.ReportEntries) {
			if result, ok := entry.GetRawValue().(*IncidentResult); ok {
				result.Failure = specFormat.Message(spec)
				recorded.Incidents = append(recorded.Incidents, *result)
				break
			}
		}
	}
	if *resultsFlag != "" {
		if err := WriteResults(*resultsFlag, recorded); err != nil {
			Fail(fmt.Sprintf("-results: %v", err))
		}
	}
	if overruled > 0 {
		Fail(fmt.Sprintf("%d specs did not fail at their last attempt, but before, for what no further attempt mends", overruled))
	}
})

// final has the failures that stand although the spec passes at its next attempt: a pod
// that died, a deletion that was not honoured, a guard that failed.
var final specreport.Final

// stand makes a failure of the running spec final.
func stand(format string, args ...any) {
	final.Add(CurrentSpecReport(), fmt.Sprintf(format, args...))
}

var _ = ReportAfterEach(func(spec SpecReport) {
	if line := specFormat.Progress(spec); line != "" {
		progress("%s", line)
	}
})

// specFormat is how this suite tells about its specs.
var specFormat = specreport.Format{Title: specTitle, MessageLimit: 300}

// specTitle is how a person is told about a spec: incidents have titles of their
// own, the others read as a sentence with their container.
func specTitle(spec SpecReport) string {
	if slices.Contains(spec.Labels(), labelIncident) {
		return spec.LeafNodeText
	}
	return specreport.Title(spec)
}

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
		answer, err := provider.Node().Kubelet().Get(ctx, path)
		keep(name, answer, err)
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
	progress("artifacts: %s", artifacts.Dir)
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
