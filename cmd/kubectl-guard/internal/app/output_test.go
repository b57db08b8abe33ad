package app

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnknownOutputFormat(t *testing.T) {
	t.Parallel()
	r := everyState(t).run("", "holds", "-o", "xml")
	require.ErrorContains(t, r.err, `unknown format "xml"; known are table, wide, json, yaml`)
}
