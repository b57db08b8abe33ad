package printer

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	Wrap(&out, "Name:  ", strings.Repeat("word ", 30)+strings.Repeat("x", 120))
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	require.Len(t, lines, 3)
	require.LessOrEqual(t, len(lines[0]), textWidth)
	require.True(t, strings.HasPrefix(lines[1], "       word"))
	require.Equal(t, "       "+strings.Repeat("x", 120), lines[2], "a word that fits nowhere is kept whole")
}
