package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// DefaultOverrideLimit is how far ahead an override may expire: an override that is
// valid for weeks is a removed label.
const DefaultOverrideLimit = 24 * time.Hour

// suggestedOverride is how long the override of the message that explains it lasts.
const suggestedOverride = 15 * time.Minute

// overrideReasonLimit bounds what goes into the audit log, in bytes.
const overrideReasonLimit = 512

// OverrideValue is the content of an override annotation.
type OverrideValue struct {
	Expires time.Time
	Reason  string
}

// String returns the value as the annotation has it.
func (o OverrideValue) String() string {
	return guardv1alpha1.FormatOverride(o.Expires, o.Reason)
}

// ParseOverride reads the value of an override annotation and checks it against the
// time. The error has what is wrong with the value and how to write it.
func ParseOverride(value string, now time.Time, limit time.Duration) (OverrideValue, error) {
	expiry, reason, _ := strings.Cut(strings.TrimSpace(value), " ")
	reason = strings.TrimSpace(reason)
	expires, err := time.Parse(time.RFC3339, expiry)
	switch {
	case err != nil:
		return OverrideValue{}, fmt.Errorf("%q does not start with a time as in RFC 3339; write %q", value, suggestion(now))
	case reason == "":
		return OverrideValue{}, fmt.Errorf("%q has no reason; write %q", value, suggestion(now))
	case len(reason) > overrideReasonLimit:
		return OverrideValue{}, fmt.Errorf("its reason has %d bytes, %d are allowed", len(reason), overrideReasonLimit)
	case !now.Before(expires):
		return OverrideValue{}, fmt.Errorf("it expired at %s, and it is %s now", expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case expires.After(now.Add(limit)):
		return OverrideValue{}, fmt.Errorf("it expires at %s, which is more than %s ahead; write %q", expires.UTC().Format(time.RFC3339), limit, suggestion(now))
	}
	return OverrideValue{Expires: expires, Reason: reason}, nil
}

// suggestion returns a value that would count now, but for its reason.
func suggestion(now time.Time) string {
	return OverrideValue{Expires: now.Add(suggestedOverride), Reason: "<reason>"}.String()
}

// Overrides judges override annotations.
type Overrides struct {
	Reviews authorizationclient.SubjectAccessReviewInterface
	// Limit is how far ahead an override may expire.
	Limit time.Duration
}

// errNoOverride means that the object carries no override.
var errNoOverride = errors.New("no override")

// judge returns the override of the request, errNoOverride when there is none, or
// why it does not count.
func (o Overrides) judge(ctx context.Context, request *Request, now time.Time) (OverrideValue, error) {
	holder, err := request.overrideHolder()
	if err != nil {
		return OverrideValue{}, err
	}
	if holder == nil {
		return OverrideValue{}, errNoOverride
	}
	text, ok := holder.Annotations[guardv1alpha1.OverrideAnnotation]
	if !ok {
		return OverrideValue{}, errNoOverride
	}
	value, err := ParseOverride(text, now, o.Limit)
	if err != nil {
		return OverrideValue{}, err
	}
	key := request.Key()
	namespace := key.Namespace
	if isNamespace(request) {
		// As the API server authorizes requests about a namespace: in that namespace, so
		// that a role in it counts.
		namespace = key.Name
	}
	allowed, err := o.mayAccess(ctx, request.UserInfo, authorizationv1.ResourceAttributes{
		Namespace: namespace,
		Verb:      guardv1alpha1.OverrideVerb,
		Group:     request.Resource.Group,
		Version:   request.Resource.Version,
		Resource:  request.Resource.Resource,
		Name:      key.Name,
	})
	switch {
	case err != nil:
		return OverrideValue{}, fmt.Errorf("the permission could not be looked up: %w", err)
	case !allowed:
		return OverrideValue{}, fmt.Errorf("user %q may not use the verb %s on %s; a role with it is needed, and kubectl auth can-i %s %s%s checks it",
			request.UserInfo.Username, guardv1alpha1.OverrideVerb, request.Target(),
			guardv1alpha1.OverrideVerb, request.TargetArgument(), request.NamespaceFlag())
	}
	return value, nil
}

// mayAccess reports whether the user may use the verb of the attributes.
func (o Overrides) mayAccess(ctx context.Context, user authenticationv1.UserInfo, attributes authorizationv1.ResourceAttributes) (bool, error) {
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for key, value := range user.Extra {
		extra[key] = authorizationv1.ExtraValue(value)
	}
	response, err := o.Reviews.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		ResourceAttributes: &attributes, User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("review the access of user %q: %w", user.Username, err)
	}
	return response.Status.Allowed, nil
}
