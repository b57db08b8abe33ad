package admission

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
)

// NewAccessReviewer returns an AccessReviewer that queries the API server.
func NewAccessReviewer(reviews authorizationclient.SubjectAccessReviewInterface) AccessReviewer {
	return accessReviewer{reviews}
}

type accessReviewer struct {
	reviews authorizationclient.SubjectAccessReviewInterface
}

func (a accessReviewer) MayAccess(ctx context.Context, user authenticationv1.UserInfo, attributes authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		ResourceAttributes: &attributes,
		User:               user.Username,
		UID:                user.UID,
		Groups:             user.Groups,
	}}
	if len(user.Extra) > 0 {
		review.Spec.Extra = make(map[string]authorizationv1.ExtraValue, len(user.Extra))
		for key, value := range user.Extra {
			review.Spec.Extra[key] = authorizationv1.ExtraValue(value)
		}
	}
	response, err := a.reviews.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("review the access of user %q: %w", user.Username, err)
	}
	return response.Status.Allowed, nil
}
