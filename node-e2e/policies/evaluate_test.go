package policies

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// review is a request as admission sees it.
type review struct {
	// resource as in "deployments.apps/scale", of version v1.
	resource string
	// old and new are in YAML; which of them there are says what the operation is.
	old, new string
	// options of a deletion.
	options string
	user    string
	groups  []string
	// node is in the token of the user.
	node string
	// may is a verb that the user may use.
	may string
	// connect: the operation is CONNECT, with the new object as its options.
	connect bool
	// override: the user may use that verb.
	override bool
	// namespace has these labels in addition to its name, which is that of the object.
	namespace map[string]string
}

// checks are the authorization checks that a review has made.
type checks []authorizer.AttributesRecord

// object decodes as the API server does: whole numbers are int64.
func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	if text == "" {
		return nil
	}
	encoded, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	decoded := &unstructured.Unstructured{}
	require.NoError(t, decoded.UnmarshalJSON(encoded), text)
	return decoded
}

// attributes returns those of the review, the labels of its namespace, and where the
// authorizer records its checks.
func (r review) attributes(t *testing.T) (*admission.VersionedAttributes, *corev1.Namespace, authorizer.Authorizer, *checks) {
	t.Helper()
	name, subresource, _ := strings.Cut(r.resource, "/")
	resource := schema.ParseGroupResource(name).WithVersion("v1")
	before, after := object(t, r.old), object(t, r.new)
	operation, any := admission.Update, after
	var options runtime.Object = &metav1.UpdateOptions{}
	switch {
	case after == nil:
		operation, any, options = admission.Delete, before, &metav1.DeleteOptions{}
		require.NoError(t, yaml.Unmarshal([]byte(r.options), options))
	case r.connect:
		operation, options = admission.Connect, nil
	case before == nil:
		operation, options = admission.Create, &metav1.CreateOptions{}
	}
	namespaceName := any.GetNamespace()
	var namespace *corev1.Namespace
	if name == "namespaces" {
		namespaceName = any.GetName()
	}
	if namespaceName != "" {
		namespace = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceName, Labels: map[string]string{corev1.LabelMetadataName: namespaceName}}}
		for key, value := range r.namespace {
			namespace.Labels[key] = value
		}
	}
	var newObject, oldObject runtime.Object
	if after != nil {
		newObject = after
	}
	if before != nil {
		oldObject = before
	}
	who := &user.DefaultInfo{Name: r.user, Groups: r.groups}
	if r.node != "" {
		who.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {r.node}}
	}
	attributes := admission.NewAttributesRecord(newObject, oldObject, any.GroupVersionKind(), namespaceName, any.GetName(),
		resource, subresource, operation, options, false, who)
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: any.GroupVersionKind(), VersionedObject: admission.NewLazyObject(newObject), VersionedOldObject: admission.NewLazyObject(oldObject)}
	questions := &checks{}
	return versioned, namespace, authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		*questions = append(*questions, authorizer.AttributesRecord{Verb: a.GetVerb(), Namespace: a.GetNamespace(),
			APIGroup: a.GetAPIGroup(), Resource: a.GetResource(), Subresource: a.GetSubresource(), Name: a.GetName()})
		if r.override && a.GetVerb() == "override" || r.may != "" && a.GetVerb() == r.may {
			return authorizer.DecisionAllow, "", nil
		}
		return authorizer.DecisionNoOpinion, "", nil
	}), questions
}

// selected reports whether rules and selectors let the request through.
func selected(t *testing.T, attributes admission.Attributes, namespace *corev1.Namespace, ruleSet []admissionregistrationv1.RuleWithOperations, objects, namespaces *metav1.LabelSelector) bool {
	t.Helper()
	matches := false
	for _, rule := range ruleSet {
		matcher := rules.Matcher{Rule: rule, Attr: attributes}
		matches = matches || matcher.Matches()
	}
	return matches && selectsAny(t, objects, attributes.GetObject(), attributes.GetOldObject()) && selectsAny(t, namespaces, namespace)
}

// selectsAny reports whether the selector selects one of the objects. A selector of
// namespaces has nothing to say about an object without one.
func selectsAny(t *testing.T, selector *metav1.LabelSelector, objects ...runtime.Object) bool {
	t.Helper()
	if selector == nil {
		return true
	}
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	require.NoError(t, err)
	for _, object := range objects {
		if namespace, ok := object.(*corev1.Namespace); ok && namespace == nil {
			return true
		}
		if object == nil {
			continue
		}
		accessor, err := meta.Accessor(object)
		require.NoError(t, err)
		if parsed.Matches(labels.Set(accessor.GetLabels())) {
			return true
		}
	}
	return false
}

func withOperations(named []admissionregistrationv1.NamedRuleWithOperations) []admissionregistrationv1.RuleWithOperations {
	var plain []admissionregistrationv1.RuleWithOperations
	for _, rule := range named {
		plain = append(plain, rule.RuleWithOperations)
	}
	return plain
}

// compiler compiles expressions as an API server of a version does.
type compiler struct {
	*cel.CompositedCompiler
	// mode is whether what the version itself lacks counts, for expressions that a newer
	// API server has stored.
	mode environment.Type
}

func newCompiler(t *testing.T, of *version.Version, mode environment.Type) compiler {
	t.Helper()
	c, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(of))
	require.NoError(t, err)
	return compiler{c, mode}
}

// defaultCompiler is that of an API server of the version of the libraries.
func defaultCompiler(t *testing.T) compiler {
	t.Helper()
	return newCompiler(t, environment.DefaultCompatibilityVersion(), environment.StoredExpressions)
}

func (c compiler) conditions(expressions []cel.ExpressionAccessor, variables cel.OptionalVariableDeclarations) cel.ConditionEvaluator {
	return c.CompileCondition(expressions, variables, c.mode)
}

// matcher returns what the conditions decide, nil when there are none, and which of them do
// not compile.
func (c compiler) matcher(conditions []admissionregistrationv1.MatchCondition, variables cel.OptionalVariableDeclarations, failurePolicy *admissionregistrationv1.FailurePolicyType) ([]error, matchconditions.Matcher) {
	if len(conditions) == 0 {
		return nil, nil
	}
	accessors := make([]cel.ExpressionAccessor, len(conditions))
	for i := range conditions {
		accessors[i] = (*matchconditions.MatchCondition)(&conditions[i])
	}
	compiled := c.conditions(accessors, variables)
	return compiled.CompilationErrors(), matchconditions.NewMatcher(compiled, failurePolicy, "", "", "")
}

// policies are those of the manifests, by name.
type policies map[string]*admissionregistrationv1.ValidatingAdmissionPolicy

// documents reads the YAML documents of the files.
func documents(t *testing.T, pattern string, each func(kind string, text []byte)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "manifests", "control-plane", pattern))
	require.NoError(t, err)
	require.NotEmpty(t, files, pattern)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content))); ; {
			text, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err, file)
			var kind metav1.TypeMeta
			require.NoError(t, yaml.Unmarshal(text, &kind), file)
			each(kind.Kind, text)
		}
	}
}

func loadPolicies(t *testing.T, pattern string) policies {
	t.Helper()
	all := policies{}
	documents(t, pattern, func(kind string, text []byte) {
		if kind != "ValidatingAdmissionPolicy" {
			return
		}
		policy := &admissionregistrationv1.ValidatingAdmissionPolicy{}
		require.NoError(t, yaml.UnmarshalStrict(text, policy))
		all[policy.Name] = policy
	})
	return all
}

// validator compiles the policy as the API server does. A compiler is for one policy, since it
// keeps the variables.
func (c compiler) validator(policy *admissionregistrationv1.ValidatingAdmissionPolicy) (validating.Validator, error) {
	with := cel.OptionalVariableDeclarations{HasParams: policy.Spec.ParamKind != nil, HasAuthorizer: true}
	// A message cannot call the authorizer.
	without := cel.OptionalVariableDeclarations{HasParams: with.HasParams}
	for _, variable := range policy.Spec.Variables {
		if result := c.CompileAndStoreVariable(&validating.Variable{Name: variable.Name, Expression: variable.Expression}, with, c.mode); result.Error != nil {
			return nil, fmt.Errorf("variable %s: %w", variable.Name, result.Error)
		}
	}
	var conditions, messages []cel.ExpressionAccessor
	for _, validation := range policy.Spec.Validations {
		conditions = append(conditions, &validating.ValidationCondition{Expression: validation.Expression, Message: validation.Message, Reason: validation.Reason})
		messages = append(messages, &validating.MessageExpressionCondition{MessageExpression: validation.MessageExpression})
	}
	validations, texts := c.conditions(conditions, with), c.conditions(messages, without)
	matches, matcher := c.matcher(policy.Spec.MatchConditions, with, policy.Spec.FailurePolicy)
	if err := errors.Join(append(append(validations.CompilationErrors(), texts.CompilationErrors()...), matches...)...); err != nil {
		return nil, err
	}
	return validating.NewValidator(validations, matcher, c.conditions(nil, with), texts, policy.Spec.FailurePolicy, nil), nil
}

// refusal returns why the policy refuses the review, "" when it does not, and what the
// authorizer has checked. A policy that cannot be evaluated fails the test.
func (p policies) refusal(t *testing.T, name string, r review, params ...runtime.Object) (string, checks) {
	t.Helper()
	policy := p[name]
	require.NotNil(t, policy, "no policy %s", name)
	attributes, namespace, access, questions := r.attributes(t)
	constraints := policy.Spec.MatchConstraints
	for _, excluded := range withOperations(constraints.ExcludeResourceRules) {
		exclusion := rules.Matcher{Rule: excluded, Attr: attributes}
		if exclusion.Matches() {
			return "", nil
		}
	}
	if !selected(t, attributes, namespace, withOperations(constraints.ResourceRules), constraints.ObjectSelector, constraints.NamespaceSelector) {
		return "", nil
	}
	validator, err := defaultCompiler(t).validator(policy)
	require.NoError(t, err, name)
	var param runtime.Object
	if len(params) > 0 {
		param = params[0]
	}
	result := validator.Validate(t.Context(), attributes.GetResource(), attributes, param, namespace, celconfig.RuntimeCELCostBudget, access)
	for _, decision := range result.Decisions {
		require.NotEqual(t, validating.EvalError, decision.Evaluation, "%s: %s", name, decision.Message)
		if decision.Action == validating.ActionDeny {
			require.NotContains(t, decision.Message, "failed expression", "the message of %s cannot be evaluated", name)
			return decision.Message, *questions
		}
	}
	return "", *questions
}

// webhooks are the entries of the manifests, by name.
type webhooks map[string]*admissionregistrationv1.ValidatingWebhook

func loadWebhooks(t *testing.T) webhooks {
	t.Helper()
	all := webhooks{}
	documents(t, "webhook/configuration.yaml", func(_ string, text []byte) {
		var configuration admissionregistrationv1.ValidatingWebhookConfiguration
		require.NoError(t, yaml.UnmarshalStrict(text, &configuration))
		for i := range configuration.Webhooks {
			all[configuration.Webhooks[i].Name] = &configuration.Webhooks[i]
		}
	})
	return all
}

// calls reports whether the review reaches the webhook by the entry.
func (w webhooks) calls(t *testing.T, name string, r review) bool {
	t.Helper()
	entry := w[name]
	require.NotNil(t, entry, "no entry %s", name)
	attributes, namespace, access, _ := r.attributes(t)
	if !selected(t, attributes, namespace, entry.Rules, entry.ObjectSelector, entry.NamespaceSelector) {
		return false
	}
	errs, m := defaultCompiler(t).matcher(entry.MatchConditions, cel.OptionalVariableDeclarations{HasAuthorizer: true}, entry.FailurePolicy)
	require.Empty(t, errs, name)
	if m == nil {
		return true
	}
	result := m.Match(t.Context(), attributes, nil, access)
	require.NoError(t, result.Error, name)
	return result.Matches
}
