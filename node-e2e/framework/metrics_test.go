package framework

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMetrics(t *testing.T) {
	metrics, err := ParseMetrics([]byte(`# TYPE kills_total counter
kills_total{cause="Evicted",mode="Enforce"} 2
kills_total{cause="Evicted",mode="Audit"} 1
kills_total{cause="Preempted",mode="Enforce"} 0
`))
	require.NoError(t, err)
	require.Equal(t, 3.0, metrics.Sum("kills_total"))
	require.Equal(t, map[string]int{"Evicted": 3}, ByLabel[string](metrics["kills_total"].GetMetric(), "cause"))
	enforced := metrics.Series("kills_total", map[string]string{"mode": "Enforce"})
	require.Len(t, enforced, 2)
	require.Equal(t, map[string]int{"Evicted": 2}, ByLabel[string](enforced, "cause"))
	require.Empty(t, metrics.Series("none", nil))
}
