package rollout

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const image = "registry.example/kubelet-guard/installer:v1.36.3"

func TestRequestSurvivesItsAnnotation(t *testing.T) {
	request := Request{
		Target: Audit, Image: image, KubeletVersion: "v1.36.3+guard.0.1.0",
		KubeletChecksums: map[string]string{"amd64": strings.Repeat("a", 64), "arm64": strings.Repeat("b", 64)},
		Configuration:    "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\nallowedCauses: [NodeShutdown]\n",
		ReleaseHeldUIDs:  []types.UID{"a", "b"},
		VerifyTimeout:    metav1.Duration{Duration: 90 * time.Second},
	}
	parsed, err := ParseRequest(encode(request))
	require.NoError(t, err)
	assert.Equal(t, request, parsed)
	assert.Equal(t, request.ID(), parsed.ID())
}

func TestRequestIDDiffersWithWhatIsRequested(t *testing.T) {
	request := Request{Target: Audit, Image: image}
	ids := map[string]bool{request.ID(): true}
	for _, change := range []func(*Request){
		func(r *Request) { r.Target = Enforce },
		func(r *Request) { r.Image += "-2" },
		func(r *Request) { r.KubeletVersion = "v1.36.4+guard.0.1.0" },
		func(r *Request) { r.KubeletChecksums = map[string]string{"amd64": strings.Repeat("a", 64)} },
		func(r *Request) { r.Configuration = "x" },
		func(r *Request) { r.ReleaseHeldUIDs = []types.UID{"a"} },
	} {
		changed := request
		change(&changed)
		ids[changed.ID()] = true
	}
	assert.Len(t, ids, 7)
	assert.Equal(t, request.ID(), Request{Target: Audit, Image: image}.ID())
}

func TestRequestThatIsWrongNamesTheField(t *testing.T) {
	for name, c := range map[string]struct {
		request Request
		want    string
	}{
		"no target":           {Request{Image: image}, "target: Unsupported value"},
		"unknown target":      {Request{Target: "Off", Image: image}, "target: Unsupported value"},
		"no image":            {Request{Target: Audit}, "image: Required value"},
		"image with a space":  {Request{Target: Audit, Image: "a b"}, "image: Invalid value"},
		"short checksum":      {Request{Target: Audit, Image: image, KubeletChecksums: map[string]string{"amd64": "abc"}}, "kubeletChecksums[amd64]: Invalid value"},
		"bad configuration":   {Request{Target: Audit, Image: image, Configuration: "a: 1"}, "configuration: Invalid value"},
		"other mode":          {Request{Target: Audit, Image: image, Configuration: "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\nmode: Enforce\n"}, "mode: Enforce is not the target's (Audit)"},
		"timeout too long":    {Request{Target: Audit, Image: image, VerifyTimeout: metav1.Duration{Duration: time.Hour}}, "verifyTimeout: Invalid value"},
		"a blanket yes":       {Request{Target: Stock, Image: image, ReleaseHeld: true}, "releaseHeld: Forbidden: it would stop every pod that is held when a node's turn comes"},
		"too many held pods":  {Request{Target: Stock, Image: image, ReleaseHeldUIDs: make([]types.UID, MaxReleased+1)}, "releaseHeldUIDs: Too many"},
		"no UID":              {Request{Target: Stock, Image: image, ReleaseHeldUIDs: []types.UID{""}}, "releaseHeldUIDs: Invalid value"},
		"settles too late":    {Request{Target: Audit, Image: image, Settle: metav1.Duration{Duration: time.Minute}, VerifyTimeout: metav1.Duration{Duration: time.Minute}}, "settle: Invalid value"},
		"settles too long":    {Request{Target: Audit, Image: image, Settle: metav1.Duration{Duration: 5 * time.Minute}}, "must be between 0 (the default, 15s) and 4m15s"},
		"no version":          {Request{Target: Stock, Image: image, StockVersion: "1.36"}, "stockVersion: Invalid value"},
		"observes, but wrong": {Request{Target: Observe, Image: image, Configuration: "a: 1"}, "configuration: Invalid value"},
	} {
		t.Run(name, func(t *testing.T) {
			assert.ErrorContains(t, c.request.Validate(), c.want)
		})
	}
	_, err := ParseRequest(`{"target":"Audit","image":"x","Image":"y"}`)
	assert.ErrorContains(t, err, "unknown field")
}

func TestGuardConfigurationHasTheModeOfTheTarget(t *testing.T) {
	for target, mode := range map[Target]guard.Mode{Audit: guard.Audit, Enforce: guard.Enforce} {
		data, err := Request{Target: target, Image: image, Configuration: `{"apiVersion":"config.kubelet-guard.io/v1alpha1","kind":"GuardConfiguration","allowedCauses":["NodeShutdown"]}`}.GuardConfiguration()
		require.NoError(t, err)
		config, err := guard.ParseConfiguration(data)
		require.NoError(t, err)
		want := guard.DefaultConfiguration()
		want.Mode, want.AllowedCauses = mode, []guard.Cause{guard.NodeShutdown}
		assert.Equal(t, want, config)
	}
}

func TestVerifyTimeoutGrowsWithTheSettleTime(t *testing.T) {
	for settle, want := range map[time.Duration]time.Duration{0: time.Minute, 10 * time.Second: time.Minute, 2 * time.Minute: 165 * time.Second, MaxSettle: MaxVerifyTimeout} {
		request := Request{Target: Audit, Image: "image", Settle: metav1.Duration{Duration: settle}}
		assert.Equal(t, want, request.Verify(), settle)
		assert.NoError(t, request.Validate(), settle)
	}
}
