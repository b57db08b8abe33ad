package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"kubelet-guard.io/cmd/guard-webhook/internal/certificates"
	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// options are the flags.
type options struct {
	mode     string
	ruleMode map[string]string

	overrideLimit time.Duration

	namespace            string
	service              string
	secret               string
	webhookConfiguration string
	certDir              string
	port                 int
	callerCAFile         string
	callerNames          []string
	allowAnyCaller       bool

	healthAddress  string
	metricsAddress string
	kubeconfig     string
	leaderElect    bool
	shutdownDelay  time.Duration

	recordTTL       time.Duration
	deletedNodeHold time.Duration

	workloadControllers map[string]string
}

// newOptions returns the defaults. The namespace is the one that the pod runs in.
func newOptions(podNamespace string) *options {
	if podNamespace == "" {
		podNamespace = guardv1alpha1.SystemNamespace
	}
	return &options{
		mode:                 string(admission.Enforce),
		overrideLimit:        admission.DefaultOverrideLimit,
		namespace:            podNamespace,
		service:              "guard-webhook",
		secret:               "guard-webhook-tls",
		webhookConfiguration: "kubelet-guard",
		port:                 9443,
		healthAddress:        ":8081",
		metricsAddress:       ":8080",
		leaderElect:          true,
		shutdownDelay:        5 * time.Second,
		recordTTL:            guardv1alpha1.PodDeletionLifetime,
		deletedNodeHold:      poddeletion.DefaultDeletedNodeHold,
	}
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.mode, "mode", o.mode, "what a refusal does: Enforce refuses, Audit warns and lets the request pass")
	flags.StringToStringVar(&o.ruleMode, "rule-mode", nil, "mode of one rule, such as NodeDeletion=Audit; may be repeated. Rules: "+strings.Join(ruleNames(), ", "))
	flags.DurationVar(&o.overrideLimit, "override-limit", o.overrideLimit, "how far ahead an override may expire")
	flags.DurationVar(&o.recordTTL, "record-ttl", o.recordTTL, "how long a PodDeletion record is kept; longer than a node can be cut off")
	flags.StringToStringVar(&o.workloadControllers, "workload-controllers", nil, "controllers that run workloads and may scale them past budgets, besides those of Kubernetes: kind and user, such as StatefulSet.apps.kruise.io=system:serviceaccount:kruise-system:kruise-manager; may be repeated")
	flags.DurationVar(&o.deletedNodeHold, "deleted-node-hold", o.deletedNodeHold, "how long protected pods that were ready are kept from the pod garbage collector after their node was deleted; 0 for budgets alone")

	flags.StringVar(&o.namespace, "namespace", o.namespace, "namespace of the webhook; by default that of its pod (POD_NAMESPACE)")
	flags.StringVar(&o.service, "service", o.service, "Service by whose name the API server calls the webhook")
	flags.StringVar(&o.secret, "cert-secret", o.secret, "Secret for the certificates that the webhook makes; it is created when absent")
	flags.StringVar(&o.webhookConfiguration, "webhook-configuration", o.webhookConfiguration, "ValidatingWebhookConfiguration that calls the webhook; it gets the certificate authority, and an entry for the pools of nodes that an outage holds")
	flags.StringVar(&o.certDir, "cert-dir", o.certDir, "folder with tls.crt and tls.key that something else renews; the webhook then makes no certificate and leaves those in its configuration alone")
	flags.IntVar(&o.port, "port", o.port, "port of the webhook")
	flags.StringVar(&o.callerCAFile, "caller-ca-file", o.callerCAFile, "certificates of the authorities that sign the client certificates of the API servers")
	flags.StringSliceVar(&o.callerNames, "caller-names", nil, "common names of these client certificates")
	flags.BoolVar(&o.allowAnyCaller, "allow-any-caller", o.allowAnyCaller, "judge reviews of any client that reaches the port, where the API servers cannot be given a client certificate")

	flags.StringVar(&o.healthAddress, "health-address", o.healthAddress, "address of /healthz and /readyz")
	flags.StringVar(&o.metricsAddress, "metrics-address", o.metricsAddress, "address of /metrics, plain HTTP; 0 for none")
	flags.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "kubeconfig file; by default the service account of the pod")
	flags.BoolVar(&o.leaderElect, "leader-elect", o.leaderElect, "let one replica run the controllers that must be single; decisions never wait for it")
	flags.DurationVar(&o.shutdownDelay, "shutdown-delay", o.shutdownDelay, "how long to go on serving after a signal, until the API server has stopped calling")
}

func ruleNames() []string {
	names := make([]string, 0, len(admission.RuleNames()))
	for _, name := range admission.RuleNames() {
		names = append(names, string(name))
	}
	return names
}

// validate returns the modes, or what is wrong with the flags, all of it.
func (o *options) validate() (admission.Modes, error) {
	var errs []error
	wrong := func(flag, format string, arguments ...any) {
		errs = append(errs, fmt.Errorf("--"+flag+": "+format, arguments...))
	}

	if _, err := admission.ParseMode(o.mode); err != nil {
		wrong("mode", "%w", err)
	}
	for _, rule := range slices.Sorted(maps.Keys(o.ruleMode)) {
		if _, err := admission.ParseModes(string(admission.Enforce), map[string]string{rule: o.ruleMode[rule]}); err != nil {
			wrong("rule-mode", "%w", err)
		}
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
		least time.Duration
	}{
		{"override-limit", o.overrideLimit, time.Minute},
		{"record-ttl", o.recordTTL, time.Hour},
		{"deleted-node-hold", o.deletedNodeHold, 0},
		{"shutdown-delay", o.shutdownDelay, 0},
	} {
		if d.value < d.least {
			wrong(d.flag, "%s is less than %s", d.value, d.least)
		}
	}
	for _, name := range []struct{ flag, value string }{
		{"namespace", o.namespace}, {"service", o.service}, {"cert-secret", o.secret}, {"webhook-configuration", o.webhookConfiguration},
	} {
		if problems := validation.IsDNS1123Subdomain(name.value); len(problems) > 0 {
			wrong(name.flag, "%q is not a name: %s", name.value, problems[0])
		}
	}
	if problems := validation.IsValidPortNum(o.port); len(problems) > 0 {
		wrong("port", "%d: %s", o.port, problems[0])
	}
	for _, address := range []struct{ flag, value string }{{"health-address", o.healthAddress}, {"metrics-address", o.metricsAddress}} {
		if _, _, err := net.SplitHostPort(address.value); err != nil && address.value != "0" {
			wrong(address.flag, "%q is not an address such as :8080", address.value)
		}
	}
	switch {
	case o.callerCAFile == "" && !o.allowAnyCaller:
		wrong("caller-ca-file", "is required, so that only reviews of the API servers are judged; where they cannot be given a client certificate, use --allow-any-caller")
	case o.callerCAFile != "" && o.allowAnyCaller:
		wrong("allow-any-caller", "contradicts --caller-ca-file")
	case o.callerCAFile != "" && len(o.callerNames) == 0:
		wrong("caller-names", "is required with --caller-ca-file: the authority of a cluster signs the certificates of its nodes, too")
	case o.callerCAFile == "" && len(o.callerNames) > 0:
		wrong("caller-names", "needs --caller-ca-file")
	}
	if _, err := poddeletion.ParseControllers(o.workloadControllers); err != nil {
		wrong("workload-controllers", "%w", err)
	}
	if o.certDir != "" {
		if err := certificates.CheckFiles(o.certDir); err != nil {
			wrong("cert-dir", "%s %w", o.certDir, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return admission.Modes{}, err
	}
	return admission.ParseModes(o.mode, o.ruleMode)
}
