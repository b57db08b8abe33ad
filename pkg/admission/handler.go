package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/utils/clock"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// FailurePolicy is what becomes of a request that a rule could not judge. It is
// the same as that of the webhook entry, for failures that happen inside it.
type FailurePolicy string

const (
	// FailClosed refuses the request.
	FailClosed FailurePolicy = "Fail"
	// FailOpen lets it pass.
	FailOpen FailurePolicy = "Ignore"
)

// Entry is one entry of the webhook configuration: a path, and the rules that
// requests there have to pass, one after the other.
type Entry struct {
	Path          string
	Rules         []Rule
	FailurePolicy FailurePolicy
}

// Handler serves one Entry. It is safe for concurrent use.
type Handler struct {
	entry     Entry
	modes     Modes
	overrides Overrides
	metrics   *Metrics
	clock     clock.PassiveClock
}

// NewHandler returns the handler of the entry.
func NewHandler(entry Entry, modes Modes, overrides Overrides, metrics *Metrics, clock clock.PassiveClock) (*Handler, error) {
	if entry.FailurePolicy != FailClosed && entry.FailurePolicy != FailOpen {
		return nil, fmt.Errorf("webhook entry %s: failurePolicy %q is neither %s nor %s", entry.Path, entry.FailurePolicy, FailClosed, FailOpen)
	}
	if len(entry.Rules) == 0 {
		return nil, fmt.Errorf("webhook entry %s has no rules", entry.Path)
	}
	for _, rule := range entry.Rules {
		if !slices.Contains(RuleNames(), rule.Name) {
			return nil, fmt.Errorf("webhook entry %s: unknown rule %q", entry.Path, rule.Name)
		}
	}
	return &Handler{entry: entry, modes: modes, overrides: overrides, metrics: metrics, clock: clock}, nil
}

// Handle implements the webhook handler of controller-runtime.
func (h *Handler) Handle(ctx context.Context, review webhook.Request) webhook.Response {
	request := NewRequest(review.AdmissionRequest)
	response := newResponse(request)
	override := h.override(ctx, request)
	for _, rule := range h.entry.Rules {
		mode := h.modes.Of(rule.Name)
		started := h.clock.Now()
		decision := rule.Review(ctx, request)
		took := h.clock.Since(started)
		response.add(decision)

		verdict, stop := h.judge(response, rule.Name, mode, decision, override)
		h.metrics.observe(rule.Name, verdict, mode, request.Operation, took)
		if stop != nil {
			return *stop
		}
	}
	return response.allow()
}

// judge applies the override and the mode to the decision of a rule. It returns the
// verdict to count, and the response when the request ends here.
func (h *Handler) judge(response *response, rule RuleName, mode Mode, decision Decision, override func() (OverrideValue, error)) (Verdict, *webhook.Response) {
	verdict, reason, message := decision.Verdict, decision.Reason, decision.text()
	switch verdict {
	case Allowed:
		return Allowed, nil
	case Refused:
	case Failed:
		message = fmt.Sprintf("the rule %s cannot be decided for %s: %v", rule, response.request.Target(), decision.Err)
	default:
		verdict = Failed
		message = fmt.Sprintf("the rule %s returned the unknown verdict %q; this is a defect of the webhook", rule, decision.Verdict)
	}

	value, err := override()
	switch {
	case err == nil:
		response.record(rule, mode, Overridden, reason, message)
		response.annotations["override"] = fmt.Sprintf("%s by %s", value, response.request.UserInfo.Username)
		response.warn("the rule %s was overridden until %s: %s", rule, value.Expires.UTC().Format(time.RFC3339), value.Reason)
		return Overridden, nil
	case errors.Is(err, errNoOverride):
		if verdict == Refused {
			message += h.advice(response.request)
		}
	default:
		message += fmt.Sprintf(". The annotation %s does not count: %v", guardv1alpha1.OverrideAnnotation, err)
	}

	response.record(rule, mode, verdict, reason, message)
	switch {
	case mode == Audit:
		response.warn("%s (the rule %s is in audit mode, so the request was let through)", message, rule)
		return verdict, nil
	case verdict == Refused:
		refusal := response.refuse(reason, message)
		return verdict, &refusal
	case h.entry.FailurePolicy == FailOpen:
		response.warn("%s; the request was let through", message)
		return verdict, nil
	}
	refusal := response.fail(message)
	return verdict, &refusal
}

// override returns a function that judges the override of the request once, when
// first called.
func (h *Handler) override(ctx context.Context, request *Request) func() (OverrideValue, error) {
	return sync.OnceValues(func() (OverrideValue, error) {
		started := h.clock.Now()
		value, err := h.overrides.judge(ctx, request, started)
		if !errors.Is(err, errNoOverride) {
			verdict := Allowed
			if err != nil {
				verdict = Refused
			}
			h.metrics.observe(Override, verdict, h.modes.Of(Override), request.Operation, h.clock.Since(started))
		}
		return value, err
	})
}

// advice returns how to override the refusal. An object that does not exist yet cannot
// be annotated.
func (h *Handler) advice(request *Request) string {
	if request.Operation == admissionv1.Create {
		return ""
	}
	return fmt.Sprintf(". In an emergency, users who may use the verb %s on it can override this: kubectl annotate %s%s --overwrite %s='%s'",
		guardv1alpha1.OverrideVerb, request.TargetArgument(), request.NamespaceFlag(),
		guardv1alpha1.OverrideAnnotation, suggestion(h.clock.Now()))
}
