package admission

import (
	"fmt"
	"maps"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// All responses are made here. response collects what the rules of an entry add to
// one.
type response struct {
	request     *Request
	warnings    []string
	annotations map[string]string
}

func newResponse(request *Request) *response {
	return &response{request: request, annotations: map[string]string{}}
}

// add takes over what the decision has for every verdict.
func (r *response) add(decision Decision) {
	r.warnings = append(r.warnings, decision.Warnings...)
	maps.Copy(r.annotations, decision.Annotations)
}

// record writes the judgement of a rule into the audit log.
func (r *response) record(rule RuleName, mode Mode, verdict Verdict, reason Reason, message string) {
	text := fmt.Sprintf("%s %s", mode, verdict)
	if reason != "" {
		text += " " + string(reason)
	}
	r.annotations[string(rule)] = text + ": " + message
}

func (r *response) warn(format string, arguments ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, arguments...))
}

// allow lets the request pass.
func (r *response) allow() webhook.Response {
	return r.finish(true, &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusOK})
}

// refuse is the response to a refusal that counts.
func (r *response) refuse(reason Reason, message string) webhook.Response {
	return r.reject(http.StatusForbidden, metav1.StatusReasonForbidden, string(reason), message)
}

// fail is the response when a rule could not find out what it needs.
func (r *response) fail(message string) webhook.Response {
	return r.reject(http.StatusInternalServerError, metav1.StatusReasonInternalError, string(Failed), message)
}

// reject has the webhook's own reason as a cause in the details, so that the reason of the status
// stays one that clients know.
func (r *response) reject(code int32, reason metav1.StatusReason, cause, message string) webhook.Response {
	return r.finish(false, &metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
		Details: &metav1.StatusDetails{
			Name:   r.request.Key().Name,
			Group:  r.request.Resource.Group,
			Kind:   r.request.Resource.Resource,
			Causes: []metav1.StatusCause{{Type: metav1.CauseType(cause), Message: message}},
		},
	})
}

func (r *response) finish(allowed bool, status *metav1.Status) webhook.Response {
	response := webhook.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed:  allowed,
		Result:   status,
		Warnings: r.warnings,
	}}
	if len(r.annotations) > 0 {
		response.AuditAnnotations = r.annotations
	}
	return response
}
