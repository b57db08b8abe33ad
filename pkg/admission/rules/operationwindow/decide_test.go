package operationwindow

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const deployment = `
metadata: {name: web, labels: {app: web}, generation: 3, resourceVersion: "7"}
spec:
  replicas: 3
  template:
    metadata:
      creationTimestamp: null
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: web:1
        env:
        - {name: LOG, value: info}
        - {name: MODE, value: a}
        resources: {limits: {cpu: "1"}}
        ports: [{containerPort: 80}]
      - name: proxy
        image: proxy:1
      initContainers:
      - {name: init, image: init:1}
      volumes:
      - {name: data, emptyDir: {}}
status: {replicas: 3}
`

func decoded(t *testing.T, text string) map[string]any {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	object := map[string]any{}
	require.NoError(t, json.Unmarshal(raw, &object))
	return object
}

func TestDiffNamesWhatChangesBelowSpec(t *testing.T) {
	for name, test := range map[string]struct {
		from, to string
		want     []string
	}{
		"nothing":                           {"", "", nil},
		"status and metadata do not count":  {"status: {replicas: 3}", "status: {replicas: 1}", nil},
		"a null field is no field":          {"      creationTimestamp: null\n", "", nil},
		"replicas":                          {"replicas: 3\n  template", "replicas: 4\n  template", []string{"spec.replicas Replicas"}},
		"an image":                          {"web:1", "web:2", []string{"spec.template.spec.containers[web].image Images"}},
		"an init container's image":         {"init:1", "init:2", []string{"spec.template.spec.initContainers[init].image Images"}},
		"a variable":                        {"value: info", "value: debug", []string{"spec.template.spec.containers[web].env[LOG].value Environment"}},
		"a variable that goes":              {"        - {name: MODE, value: a}\n", "", []string{"spec.template.spec.containers[web].env[MODE] Environment"}},
		"a limit":                           {`limits: {cpu: "1"}`, `limits: {cpu: "2", memory: 1Gi}`, []string{"spec.template.spec.containers[web].resources.limits.cpu Resources", "spec.template.spec.containers[web].resources.limits.memory Resources"}},
		"a container that comes":            {"      - name: proxy\n", "      - {name: extra, image: extra:1}\n      - name: proxy\n", []string{"spec.template.spec.containers[extra] "}},
		"a container that goes":             {"      - name: proxy\n        image: proxy:1\n", "", []string{"spec.template.spec.containers[proxy] "}},
		"the order of variables":            {"        - {name: LOG, value: info}\n        - {name: MODE, value: a}\n", "        - {name: MODE, value: a}\n        - {name: LOG, value: info}\n", []string{"spec.template.spec.containers[web].env Environment"}},
		"elements without names by place":   {"containerPort: 80", "containerPort: 81", []string{"spec.template.spec.containers[web].ports[0].containerPort "}},
		"a kind of volume":                  {"emptyDir: {}", "hostPath: {path: /}", []string{"spec.template.spec.volumes[data].emptyDir ", "spec.template.spec.volumes[data].hostPath.path "}},
		"a key with dots is in brackets":    {"      labels: {app: web}\n", "      labels: {app: web}\n      annotations: {kubectl.kubernetes.io/restartedAt: now}\n", []string{"spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt] "}},
		"a second key with dots":            {"labels: {app: web}\n    spec", "labels: {app: web, example.com/x: y}\n    spec", []string{"spec.template.metadata.labels[example.com/x] "}},
		"several, in the order of the spec": {"web:1", "web:2\n        command: [x]", []string{"spec.template.spec.containers[web].command ", "spec.template.spec.containers[web].image Images"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, deployment, test.from)
			after := strings.Replace(deployment, test.from, test.to, 1)
			var got []string
			for _, path := range Diff(decoded(t, deployment), decoded(t, after)) {
				got = append(got, path.String()+" "+string(CategoryOf(path)))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("changed fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPathsCoverWhatIsBelow(t *testing.T) {
	for _, test := range []struct {
		path, field string
		want        bool
	}{
		{"spec.template.spec.containers[*].livenessProbe", "spec.template.spec.containers[web].livenessProbe.periodSeconds", true},
		{"spec.template.spec.containers[web].livenessProbe", "spec.template.spec.containers[api].livenessProbe", false},
		{"spec.template.spec.containers[web]", "spec.template.spec.containers", false},
		{"spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]", "spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]", true},
		{"spec.template.metadata.labels[app]", "spec.template.metadata.labels.app", true},
		{"spec.template.metadata.labels[*]", "spec.template.metadata.labels.app", true},
		{"spec.strategy", "spec.strategyX", false},
	} {
		path, err := parsePath(test.path)
		require.NoError(t, err)
		field, err := parsePath(test.field)
		require.NoError(t, err)
		require.Equal(t, test.path, path.String())
		require.Equal(t, test.want, path.covers(field), "%s covers %s", test.path, test.field)
	}
}

func windowOf(name string, spec guardv1alpha1.OperationWindowSpec) *Window {
	if spec.TimeZone == "" {
		spec.TimeZone = "Europe/Berlin"
	}
	return Read(&guardv1alpha1.OperationWindow{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
}

func fields(categories ...guardv1alpha1.FieldCategory) guardv1alpha1.FieldSet {
	return guardv1alpha1.FieldSet{Fields: categories}
}

func TestDecide(t *testing.T) {
	nightly := guardv1alpha1.OperationWindowSpec{
		Weekly:  []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", "Monday", "Tuesday", "Wednesday", "Thursday")},
		Inside:  fields(guardv1alpha1.AllFields),
		Outside: fields(guardv1alpha1.ReplicasField),
	}
	restart := guardv1alpha1.OperationWindowSpec{
		Weekly:  []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", "Monday")},
		Outside: guardv1alpha1.FieldSet{Paths: []string{"spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]"}},
	}
	trading := guardv1alpha1.OperationWindowSpec{
		Weekly:  []guardv1alpha1.WeeklyWindow{weekly("09:00", "17:00", everyDay...)},
		Outside: fields(guardv1alpha1.AllFields),
	}
	images := guardv1alpha1.OperationWindowSpec{
		Weekly: []guardv1alpha1.WeeklyWindow{weekly("12:00", "13:00", everyDay...)},
		Inside: fields(guardv1alpha1.ImageFields),
	}
	image, replicas := "spec.template.spec.containers[web].image", "spec.replicas"
	for name, test := range map[string]struct {
		windows []*Window
		now     string
		changed []string
		// want is the message, empty for a change that may pass.
		want string
	}{
		"no window, no restriction":            {nil, "2026-11-25T12:00:00Z", []string{image}, ""},
		"open, all fields":                     {[]*Window{windowOf("nightly", nightly)}, "2026-11-25T22:00:00Z", []string{image}, ""},
		"closed, a field that may change":      {[]*Window{windowOf("nightly", nightly)}, "2026-11-25T12:00:00Z", []string{replicas}, ""},
		"closed, a path that may change":       {[]*Window{windowOf("restart", restart)}, "2026-11-25T12:00:00Z", []string{"spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]"}, ""},
		"one of two windows is open":           {[]*Window{windowOf("images", images), windowOf("nightly", nightly)}, "2026-11-25T11:30:00Z", []string{image}, ""},
		"each field allowed by another window": {[]*Window{windowOf("images", images), windowOf("nightly", nightly)}, "2026-11-25T11:30:00Z", []string{image, replicas}, ""},
		"closed": {[]*Window{windowOf("nightly", nightly)}, "2026-11-25T12:00:00Z", []string{replicas, image},
			"deployment.apps/web in namespace shop: these fields may not change now: spec.template.spec.containers[web].image (Images). Operation windows: nightly is closed. The next opening for this change is 2026-11-25T21:00:00Z (Wednesday 2026-11-25 22:00 CET, Europe/Berlin)"},
		"closed over a weekend and a change of the clock": {[]*Window{windowOf("nightly", nightly)}, "2026-10-24T12:00:00Z", []string{image},
			"deployment.apps/web in namespace shop: these fields may not change now: spec.template.spec.containers[web].image (Images). Operation windows: nightly is closed. The next opening for this change is 2026-10-26T21:00:00Z (Monday 2026-10-26 22:00 CET, Europe/Berlin)"},
		"a window in which nothing may change, until it closes": {[]*Window{windowOf("trading", trading)}, "2026-11-25T12:00:00Z", []string{image},
			"deployment.apps/web in namespace shop: these fields may not change now: spec.template.spec.containers[web].image (Images). Operation windows: trading is open, but not for them. The next opening for this change is 2026-11-25T16:00:00Z (Wednesday 2026-11-25 17:00 CET, Europe/Berlin)"},
		"the earlier opening is for other fields": {[]*Window{windowOf("images", images), windowOf("nightly", nightly)}, "2026-11-25T08:00:00Z", []string{"spec.template.spec.containers[web].command"},
			"deployment.apps/web in namespace shop: these fields may not change now: spec.template.spec.containers[web].command. Operation windows: images is closed, nightly is closed. The next opening for this change is 2026-11-25T21:00:00Z (Wednesday 2026-11-25 22:00 CET, Europe/Berlin)"},
		"never": {[]*Window{windowOf("images", images)}, "2026-11-25T11:30:00Z", []string{replicas},
			"deployment.apps/web in namespace shop: these fields may not change now: spec.replicas (Replicas). Operation windows: images is open, but not for them. No window lets this change pass within the next 400 days"},
		"a window that is not valid counts as closed": {[]*Window{windowOf("odd", guardv1alpha1.OperationWindowSpec{TimeZone: "Mars/Olympus", Weekly: nightly.Weekly, Inside: nightly.Inside})}, "2026-11-25T23:00:00Z", []string{replicas},
			`deployment.apps/web in namespace shop: these fields may not change now: spec.replicas (Replicas). Operation windows: odd is not valid and so counts as closed (spec.timeZone: Invalid value: "Mars/Olympus": no such zone in the IANA time zone database; write a name such as Europe/Berlin or Etc/UTC). No window lets this change pass within the next 400 days`},
	} {
		t.Run(name, func(t *testing.T) {
			verdict := Decide(test.windows, paths(test.changed...), at(t, test.now))
			got := ""
			if len(verdict.Refused) > 0 {
				got = verdict.Message("deployment.apps/web in namespace shop")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWindowSelectsByKindAndLabels(t *testing.T) {
	spec := guardv1alpha1.OperationWindowSpec{
		Weekly: []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", "Monday")},
		Workloads: guardv1alpha1.WorkloadSelector{
			Kinds:    []guardv1alpha1.WorkloadKind{guardv1alpha1.StatefulSetWorkload},
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "db"}},
		},
	}
	window := windowOf("databases", spec)
	require.True(t, window.Selects("StatefulSet", map[string]string{"tier": "db", "app": "x"}))
	require.False(t, window.Selects("Deployment", map[string]string{"tier": "db"}))
	require.False(t, window.Selects("StatefulSet", map[string]string{"tier": "web"}))
	require.True(t, windowOf("all", guardv1alpha1.OperationWindowSpec{Weekly: spec.Weekly}).Selects("DaemonSet", nil))
}

// TestNextIsTheFirstMinuteThatSuits compares the search over openings and closings
// with a check of every minute.
func TestNextIsTheFirstMinuteThatSuits(t *testing.T) {
	const seed = 42
	random := rand.New(rand.NewPCG(seed, seed))
	clock := func() string { return fmt.Sprintf("%02d:%02d", random.IntN(24), 15*random.IntN(4)) }
	sets := []guardv1alpha1.FieldSet{{}, fields(guardv1alpha1.AllFields), fields(guardv1alpha1.ImageFields), fields(guardv1alpha1.ReplicasField)}
	changes := [][]Path{paths("spec.replicas"), paths("spec.template.spec.containers[web].image"), paths("spec.replicas", "spec.template.spec.containers[web].image")}
	const days = 5
	for run := range 60 {
		var windows []*Window
		for i := range 1 + random.IntN(3) {
			entry := weekly(clock(), clock(), everyDay[random.IntN(7)], everyDay[random.IntN(7)])
			if entry.From == entry.To {
				continue
			}
			windows = append(windows, windowOf(fmt.Sprint(i), guardv1alpha1.OperationWindowSpec{
				TimeZone: []string{"Europe/Berlin", "Asia/Kathmandu", "America/New_York"}[i],
				Weekly:   []guardv1alpha1.WeeklyWindow{entry}, Inside: sets[random.IntN(4)], Outside: sets[random.IntN(4)]}))
		}
		changed := changes[run%len(changes)]
		now := at(t, "2026-10-23T10:07:00Z").Add(time.Duration(random.IntN(24*60)) * time.Minute)
		verdict := Decide(windows, changed, now)
		if len(verdict.Refused) == 0 {
			continue
		}
		var want time.Time
		for minute := now; minute.Before(now.AddDate(0, 0, days)); minute = minute.Add(time.Minute) {
			allows := allowedAt(windows, minute)
			if !slices.ContainsFunc(changed, func(field Path) bool { return !allows(field) }) {
				want = minute
				break
			}
		}
		if want.IsZero() {
			require.False(t, !verdict.Next.IsZero() && verdict.Next.Before(now.AddDate(0, 0, days)), "run %d: %s", run, verdict.Next)
			continue
		}
		require.True(t, want.Equal(verdict.Next), "run %d: want %s, got %s", run, want, verdict.Next)
	}
}

// restless is a schedule that is all but always open and whose every minute is a step
// of the search: the most expensive that the schema lets through.
func restless(inside guardv1alpha1.FieldSet) guardv1alpha1.OperationWindowSpec {
	spec := guardv1alpha1.OperationWindowSpec{Inside: inside}
	for range 16 {
		spec.Cron = append(spec.Cron, cronFor("* * * * *", time.Minute))
	}
	for day := range 366 / 11 {
		spec.ExcludedDates = append(spec.ExcludedDates, guardv1alpha1.Date(time.Date(2026, 11, 30+11*day, 0, 0, 0, 0, time.UTC).Format(time.DateOnly)))
	}
	return spec
}

func TestTheSearchForTheNextOpeningIsBounded(t *testing.T) {
	both := paths("spec.replicas", "spec.template.spec.containers[web].image")
	now := at(t, "2026-11-25T12:00:00Z")
	some := restless(fields(guardv1alpha1.ImageFields))
	// It opens after the horizon.
	leap := guardv1alpha1.OperationWindowSpec{
		Cron: []guardv1alpha1.CronWindow{cronFor("0 0 29 2 *", time.Minute)}, Inside: fields(guardv1alpha1.ReplicasField)}

	t.Run("and says so when it is given up", func(t *testing.T) {
		verdict := Decide([]*Window{windowOf("some", some), windowOf("leap", leap)}, both, now)
		require.True(t, verdict.NextUnknown)
		require.Zero(t, verdict.Next)
		require.Equal(t, "deployment.apps/web: these fields may not change now: spec.replicas (Replicas). Operation windows: some is open, but not for them, leap is closed. "+
			"The next opening for this change could not be determined: the windows change too often to look far ahead", verdict.Message("deployment.apps/web"))
	})
	t.Run("and a restless window hides no opening of another", func(t *testing.T) {
		nightly := guardv1alpha1.OperationWindowSpec{Weekly: []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", everyDay...)}, Inside: fields(guardv1alpha1.AllFields)}
		verdict := Decide([]*Window{windowOf("some", some), windowOf("nightly", nightly)}, both, now)
		require.False(t, verdict.NextUnknown)
		require.Equal(t, at(t, "2026-11-25T21:00:00Z"), verdict.Next.UTC())
	})
}

// BenchmarkNextUnknown is the longest search for a next opening.
func BenchmarkNextUnknown(b *testing.B) {
	var windows []*Window
	for i := range 4 {
		windows = append(windows, windowOf(fmt.Sprint(i), restless(fields(guardv1alpha1.ImageFields))))
	}
	windows = append(windows, windowOf("leap", guardv1alpha1.OperationWindowSpec{
		Cron: []guardv1alpha1.CronWindow{cronFor("0 0 29 2 *", time.Minute)}, Inside: fields(guardv1alpha1.ReplicasField)}))
	changed := paths("spec.replicas", "spec.template.spec.containers[web].image")
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for b.Loop() {
		require.True(b, Decide(windows, changed, now).NextUnknown)
	}
}
