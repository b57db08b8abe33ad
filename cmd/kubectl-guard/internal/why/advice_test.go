package why

import (
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestEveryCauseHasAdvice(t *testing.T) {
	t.Parallel()
	for _, cause := range guard.Causes() {
		require.NotEmpty(t, advice[cause], cause)
	}
}
