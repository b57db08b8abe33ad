package framework

import (
	"errors"
	"testing"

	"github.com/onsi/gomega"
	"github.com/stretchr/testify/require"
)

func TestTry(t *testing.T) {
	g := gomega.NewGomega(func(message string, _ ...int) { panic(message) })
	require.Equal(t, 7, Try(7, nil).In(g))
	require.Panics(t, func() { Try(7, errors.New("none")).In(g) })
	require.EqualError(t, ErrorOf(7, errors.New("none")), "none")
}
