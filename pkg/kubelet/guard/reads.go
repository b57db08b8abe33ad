package guard

import (
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What the kubelet would read from the API for a vanished pod: the API server answers
// about secrets, config maps and tokens only while it knows a pod of the node that refers
// to them, so every such request is refused, and the kubelet repeats it for as long as the
// pod is held. It goes without instead, and with what it has read before.

// OnlyVanished reports whether there are references, and all of them are of pods that
// have vanished. A reference counter of the kubelet is what it is asked about.
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
