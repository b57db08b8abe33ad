package rollout

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNodesThatJoinWhileTheCommandWaitsDoNotCount(t *testing.T) {
	t.Parallel()
	node := func(name string) corev1.Node { return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	these := namesOf([]corev1.Node{node("a"), node("b")})
	require.Equal(t, []corev1.Node{node("a")}, onlyThese([]corev1.Node{node("a"), node("c")}, these))
}
