package guard

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestOnlyVanished(t *testing.T) {
	f := newFixture(t)
	vanished, present := protectedPod("vanished"), protectedPod("present")
	f.running(vanished, present)
	f.ObserveSource(apiSource, []*v1.Pod{present})
	require.True(t, f.HoldVanished(apiSource, vanished))
	require.True(t, f.Refuse(present, Evicted, ""))
	for name, test := range map[string]struct {
		references map[types.UID]int
		want       bool
	}{
		"none":                 {want: false},
		"a vanished pod":       {references: map[types.UID]int{vanished.UID: 2}, want: true},
		"a held pod":           {references: map[types.UID]int{present.UID: 1}},
		"both":                 {references: map[types.UID]int{vanished.UID: 1, present.UID: 1}},
		"with a successor":     {references: map[types.UID]int{vanished.UID: 1, "successor": 1}},
		"a pod without a name": {references: map[types.UID]int{"": 1}},
	} {
		assert.Equal(t, test.want, f.OnlyVanished(test.references), name)
	}
	f.ObserveSource(apiSource, []*v1.Pod{present, vanished})
	assert.False(t, f.OnlyVanished(map[types.UID]int{vanished.UID: 1}), "its object is back")
}

func TestRequestToken(t *testing.T) {
	f := newFixture(t)
	pod := f.vanished("p")
	requests := 0
	get := func(string, string, *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
		requests++
		return &authenticationv1.TokenRequest{}, nil
	}
	for name, test := range map[string]struct {
		bound    *authenticationv1.BoundObjectReference
		requests int
	}{
		"of a vanished pod": {bound: &authenticationv1.BoundObjectReference{Kind: "Pod", UID: pod.UID}},
		"of another pod":    {bound: &authenticationv1.BoundObjectReference{Kind: "Pod", UID: "other"}, requests: 1},
		"of none":           {requests: 1},
	} {
		requests = 0
		token, err := f.RequestToken(get, "default", "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: test.bound}})
		assert.Equal(t, test.requests, requests, name)
		assert.Equal(t, test.requests == 1, err == nil, name)
		assert.Equal(t, test.requests == 1, token != nil, name)
	}
}
