package webhookinstall

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestProbe(t *testing.T) {
	client := fake.NewClientset()
	configMaps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	var deletes []metav1.DeleteOptions
	var refusal error
	client.PrependReactor("delete", "configmaps", func(action clienttesting.Action) (bool, runtime.Object, error) {
		deletes = append(deletes, action.(clienttesting.DeleteActionImpl).DeleteOptions)
		return true, nil, refusal
	})

	answer, err := Probe(t.Context(), configMaps)
	require.NoError(t, err)
	require.NoError(t, answer, "a webhook that lets it pass")
	refusal = errors.New("refused")
	answer, err = Probe(t.Context(), configMaps)
	require.NoError(t, err, "the object is there already")
	require.Equal(t, refusal, answer)
	dryRun := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	require.Equal(t, []metav1.DeleteOptions{dryRun, dryRun}, deletes)

	broken := errors.New("no such namespace")
	client.PrependReactor("create", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, broken })
	answer, err = Probe(t.Context(), configMaps)
	require.Equal(t, broken, err)
	require.NoError(t, answer, "nothing was asked")
}
