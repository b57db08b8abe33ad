package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// recorded is what this run found, filled by specs and completed by the report.
var recorded Results

var _ = ReportAfterSuite("results", func(report Report) {
	if report.PreRunStats.SpecsThatWillRun == 0 {
		return
	}
	recorded.Kubelet, recorded.Duration = variant, report.RunTime
	for _, spec := range report.SpecReports {
		if spec.Failed() {
			recorded.Failed++
			recorded.Failures = append(recorded.Failures, specTitle(spec)+": "+brief(spec.FailureMessage()))
		} else if spec.State.Is(types.SpecStatePassed) && spec.LeafNodeText != "" {
			recorded.Passed++
		}
		for _, entry := range spec.ReportEntries {
			result, ok := entry.GetRawValue().(*IncidentResult)
			if !ok {
				continue
			}
			result.Failure = brief(spec.FailureMessage())
			recorded.Incidents = append(recorded.Incidents, *result)
		}
	}
	if *resultsFlag == "" {
		return
	}
	if err := WriteResults(*resultsFlag, recorded); err != nil {
		Fail(fmt.Sprintf("-results: %v", err))
	}
})

var _ = ReportAfterEach(func(spec SpecReport) {
	switch {
	case spec.State.Is(types.SpecStateSkipped | types.SpecStatePending):
	case spec.Failed():
		progress("%s: FAILED after %.0f s: %s", specTitle(spec), spec.RunTime.Seconds(), brief(spec.FailureMessage()))
	default:
		progress("%s: ok, %.0f s", specTitle(spec), spec.RunTime.Seconds())
	}
})

// specTitle is how a person is told about a spec: incidents have titles of their
// own, the others read as a sentence with their container.
func specTitle(spec SpecReport) string {
	switch {
	case slices.Contains(spec.Labels(), labelIncident):
		return spec.LeafNodeText
	case spec.FullText() == "":
		return spec.LeafNodeType.String()
	}
	return spec.FullText()
}

// brief is a failure message on one line, as far as it fits a progress line.
func brief(message string) string {
	const limit = 300
	line := []rune(strings.Join(strings.Fields(message), " "))
	if len(line) > limit {
		return string(line[:limit]) + "..."
	}
	return string(line)
}

var notInFileNames = regexp.MustCompile(`[^a-zA-Z0-9]+`)

// collect writes what explains a failure into the artifacts folder. It must not
// fail itself: it runs when something is broken already.
func (s *scene) collect(ctx context.Context) {
	report := CurrentSpecReport()
	dir := filepath.Join(artifactsDir(), strings.Trim(notInFileNames.ReplaceAllString(report.LeafNodeText, "-"), "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		GinkgoWriter.Printf("artifacts: %v\n", err)
		return
	}
	keep := func(name string, data []byte, err error) {
		if err != nil {
			name, data = name+".error", []byte(err.Error()+"\n")
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			GinkgoWriter.Printf("artifacts: %v\n", err)
		}
	}
	keep("failure.txt", []byte(report.StartTime.Format(time.RFC3339)+"\n"+report.FailureMessage()+"\n"), nil)
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
	progress("artifacts: %s", dir)
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
