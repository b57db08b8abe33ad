package admission

import (
	"context"
	"net/http"

	"k8s.io/utils/clock"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// FailurePolicy says what becomes of a request that a rule could not judge. It is
// the same as that of the webhook entry, for failures that happen inside it.
type FailurePolicy string

const (
	// FailClosed refuses the request.
	FailClosed FailurePolicy = "Fail"
	// FailOpen lets it pass.
	FailOpen FailurePolicy = "Ignore"
)

// Entry is one entry of the webhook configuration: a path, and the rules that
// requests there have to pass, in order.
type Entry struct {
	Path          string
	Rules         []Rule
	FailurePolicy FailurePolicy
}

// Handler serves one Entry.
type Handler struct {
	Entry Entry
	Modes Modes
	Clock clock.PassiveClock
}

// Handle implements the webhook handler of controller-runtime.
func (h *Handler) Handle(ctx context.Context, review webhook.Request) webhook.Response {
	request := NewRequest(review.AdmissionRequest)
	for _, rule := range h.Entry.Rules {
		decision := rule.Review(ctx, request)
		if decision.Verdict != Allowed {
			return webhook.Response{AdmissionResponse: webhook.Denied(decision.Message).AdmissionResponse}
		}
	}
	return webhook.ValidationResponse(true, http.StatusText(http.StatusOK))
}
