package answer

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAnd(t *testing.T) {
	unknown := Unknown(errors.New("no connection"))
	for _, c := range []struct{ a, b, want Answer }{
		{Yes(), Yes(), Yes()},
		{Yes(), No(), No()},
		{Yes(), unknown, unknown},
		{No(), unknown, No()},
		{unknown, No(), No()},
		{unknown, Yes(), unknown},
	} {
		assert.Equal(t, c.want, c.a.And(c.b))
	}
}

func TestTheZeroValueIsUnknown(t *testing.T) {
	var a Answer
	assert.False(t, a.IsYes())
	assert.False(t, a.IsNo())
	assert.EqualError(t, a.Err(), "nobody was asked")
	assert.NoError(t, Of(false).Err())
}
