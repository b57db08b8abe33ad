package guard

import (
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Reads of the API for a vanished pod: the API server serves secrets, config maps and
// tokens to a kubelet only while it knows a pod of the node that refers to them. It would
// refuse every such request, and the kubelet would repeat it for as long as the pod is
// held. So the kubelet uses what it has read before, or does without.

// OnlyVanished reports whether a reference counter of the kubelet has references, all of
// them of pods that have vanished.
func (g *Guard) OnlyVanished(references map[types.UID]int) bool {
	for uid := range references {
		if !g.Vanished(uid) {
			return false
		}
	}
	return len(references) > 0
}

// TokenGetter requests a token of the service account.
type TokenGetter func(name, namespace string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)

// RequestToken requests the token with get, unless it is to be bound to a pod that has
// vanished. No API server accepts such a token.
func (g *Guard) RequestToken(get TokenGetter, name, namespace string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	if bound := request.Spec.BoundObjectRef; bound != nil && g.Vanished(bound.UID) {
		return nil, fmt.Errorf("no token of service account %s/%s: the object of pod %s, to which it would be bound, is gone from the API", namespace, name, bound.UID)
	}
	return get(name, namespace, request)
}
