package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"kubelet-guard.io/cmd/guard-webhook/internal/certificates"
	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
	"kubelet-guard.io/pkg/paging"
	"kubelet-guard.io/pkg/version"
)

// leaseName is what the replicas elect the leader with.
const leaseName = "guard-webhook"

// A leader that cannot renew its lease stops, and its part of the reviews with it. The
// times are long, so that a slow API server does not have that come of it: what the
// leader does can wait a minute, and a replica that stops on a signal hands its lease on
// at once.
const (
	leaseDuration = 60 * time.Second
	renewDeadline = 45 * time.Second
	renewPeriod   = 5 * time.Second
)

func newCommand() *cobra.Command {
	options := newOptions(os.Getenv("POD_NAMESPACE"))
	command := &cobra.Command{
		Use:   "guard-webhook",
		Short: "Serve the admission rules of Kubelet Guard that need state or a clock",
		Long: `Serve the admission rules of Kubelet Guard that need state or a clock.

The API server calls it as configured in manifests/control-plane; docs/control-plane has a page
for each rule. Every replica decides; one of them, elected, also collects records and
keeps the status of the policies.`,
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			modes, err := options.validate()
			if err != nil {
				return err
			}
			return run(command.Context(), options, modes)
		},
	}
	options.addFlags(command.Flags())
	logging := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(logging)
	command.Flags().AddGoFlag(logging.Lookup("v"))
	return command
}

// run serves until the context ends.
func run(ctx context.Context, o *options, modes admission.Modes) error {
	ctrl.SetLogger(klog.NewKlogr())
	ctx = klog.NewContext(ctx, klog.NewKlogr())

	ages, err := admission.NewCacheAge(metrics.Registry, clock.RealClock{}, cachedResources(o)...)
	if err != nil {
		return err
	}
	serverClock := admission.NewServerClock(clock.RealClock{})
	restConfig, err := loadConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	restConfig.UserAgent = "guard-webhook"
	// A request that waits for a token of the client's own rate limit is an admission
	// review that times out. The API server limits by priority and fairness.
	restConfig.QPS = -1
	restConfig.Wrap(ages.Wrap)
	restConfig.Wrap(serverClock.Wrap)
	core, err := kubernetes.NewForConfig(protobuf(restConfig))
	if err != nil {
		return err
	}
	allowed := &callers{}
	if o.callerCAFile != "" {
		if allowed, err = newCallers(o.callerCAFile, o.callerNames); err != nil {
			return fmt.Errorf("--caller-ca-file: %w", err)
		}
	}
	serving, err := newServing(ctx, core, o)
	if err != nil {
		return err
	}
	var stopping atomic.Bool
	server := drainingServer{Server: newServer(o, allowed, serving), stopping: &stopping, callers: allowed}
	mgr, err := newManager(ctx, restConfig, server, serving, o)
	if err != nil {
		return err
	}
	known, err := newIndexes(ctx, mgr)
	if err != nil {
		return err
	}
	fleet := fleetmetrics.NewCluster(core, mgr.GetClient(), known.budgets)
	if err := mgr.Add(fleet); err != nil {
		return err
	}
	if err := register(ctx, mgr, core, known, fleet, o, modes, serverClock); err != nil {
		return err
	}
	// The metrics that belong to no rule.
	for _, collector := range []prometheus.Collector{fleetmetrics.NewCollector(fleet), admission.NewCertificateExpiry(o.port)} {
		if err := metrics.Registry.Register(collector); err != nil {
			return err
		}
	}
	if err := addChecks(ctx, mgr, server, serving, &stopping); err != nil {
		return err
	}
	return mgr.Start(untilDrained(ctx, o.shutdownDelay, &stopping))
}

// newServer returns the server of the reviews.
func newServer(o *options, allowed *callers, serving *certificates.Serving) webhook.Server {
	options := webhook.Options{Port: o.port, CertDir: o.certDir, TLSOpts: []func(*tls.Config){
		func(config *tls.Config) { config.MinVersion = tls.VersionTLS13 },
		allowed.tls,
	}}
	if serving != nil {
		options.TLSOpts = append(options.TLSOpts, serving.TLS)
	}
	return webhook.NewServer(options)
}

// newManager returns the manager, which runs the server, the caches and, in the leader, the controllers.
func newManager(ctx context.Context, restConfig *rest.Config, server webhook.Server, serving *certificates.Serving, o *options) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, guardv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	cacheOptions := cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}: {Transform: nodedeletion.TrimNode},
			// Packed: they are read through the index alone, not through the manager's client.
			&policyv1.PodDisruptionBudget{}: {Transform: poddeletion.Transform},
		},
		NewInformer: paging.NewInformer(transform),
	}
	if serving != nil {
		cacheOptions.ByObject[&corev1.Secret{}] = serving.CacheOptions()
	}
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                        scheme,
		Cache:                         cacheOptions,
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.healthAddress,
		WebhookServer:                 server,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 ptr.To(leaseDuration),
		RenewDeadline:                 ptr.To(renewDeadline),
		RetryPeriod:                   ptr.To(renewPeriod),
	})
	if err != nil || serving == nil {
		return mgr, err
	}
	return mgr, serving.SetupWithManager(ctx, mgr)
}

// newServing returns the certificates that the webhook makes, nil when it serves those of a folder.
func newServing(ctx context.Context, core kubernetes.Interface, o *options) (*certificates.Serving, error) {
	if o.certDir != "" {
		return nil, nil
	}
	return certificates.New(ctx, certificates.Config{
		Secret:   types.NamespacedName{Namespace: o.namespace, Name: o.secret},
		Service:  o.service,
		Webhooks: []string{o.webhookConfiguration},
	}, core.CoreV1())
}

// addChecks adds what the probes check.
func addChecks(ctx context.Context, mgr ctrl.Manager, server webhook.Server, serving *certificates.Serving, stopping *atomic.Bool) error {
	checks := map[string]healthz.Checker{
		"caches": func(*http.Request) error {
			// Not for longer: a probe waits.
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			if !mgr.GetCache().WaitForCacheSync(ctx) {
				return errors.New("caches are not filled yet")
			}
			return nil
		},
		// It calls the server over TLS, so it also checks that a certificate is served.
		"webhook": server.StartedChecker(),
		"signal": func(*http.Request) error {
			if stopping.Load() {
				return errors.New("stopping")
			}
			return nil
		},
	}
	if serving != nil {
		checks["certificate"] = serving.Ready
	}
	for name, check := range checks {
		if err := mgr.AddReadyzCheck(name, check); err != nil {
			return err
		}
	}
	return mgr.AddHealthzCheck("ping", healthz.Ping)
}

// untilDrained returns a context that ends the delay after the given one: connections come as long
// as the API server has the address. Meanwhile stopping is true.
func untilDrained(ctx context.Context, delay time.Duration, stopping *atomic.Bool) context.Context {
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		stopping.Store(true)
		time.AfterFunc(delay, stop)
	})
	return serve
}

// register puts the handler of each row of the table onto the server.
func register(ctx context.Context, mgr ctrl.Manager, core kubernetes.Interface, known indexes, fleet *fleetmetrics.Cluster, o *options, modes admission.Modes, serverClock *admission.ServerClock) error {
	counts, err := admission.NewMetrics(metrics.Registry, modes)
	if err != nil {
		return err
	}
	metadataClient, err := metadata.NewForConfig(mgr.GetConfig())
	if err != nil {
		return err
	}
	definitions, err := apiextensions.NewForConfig(mgr.GetConfig())
	if err != nil {
		return err
	}
	own := clock.RealClock{}
	all, err := rules.New(rules.Cluster{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Core: core, Metadata: metadataClient,
		Definitions: definitions.CustomResourceDefinitions(),
		Budgets:     known.budgets, Nodes: known.nodes, ProtectedNodes: fleet.ProtectedNodes,
	}, rules.Options{
		Modes: modes, RecordLifetime: o.recordTTL, DeletedNodeHold: o.deletedNodeHold,
		WorkloadControllers: o.workloadControllers, Clock: own, ServerClock: serverClock,
	})
	if err != nil {
		return err
	}
	if err := fillCaches(ctx, mgr); err != nil {
		return err
	}
	if err := addControllers(mgr, core, o, modes, own, serverClock); err != nil {
		return err
	}
	overrides := admission.Overrides{
		Reviews: core.AuthorizationV1().SubjectAccessReviews(),
		Limit:   o.overrideLimit,
	}
	for _, row := range rules.Table() {
		handler, err := row.Handler(all, mgr.GetScheme(), func(entry admission.Entry) (*admission.Handler, error) {
			return admission.NewHandler(entry, modes, overrides, counts, own)
		})
		if err != nil {
			return err
		}
		mgr.GetWebhookServer().Register(row.Path, handler)
	}
	return nil
}

// transform returns what the caches keep of objects like the example.
func transform(example runtime.Object) toolscache.TransformFunc {
	switch example.(type) {
	case *corev1.Node:
		return nodedeletion.TrimNode
	case *policyv1.PodDisruptionBudget:
		return poddeletion.Transform
	}
	return cache.TransformStripManagedFields()
}

func loadConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
		return c, nil
	}
	c, err := config.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("no access to a cluster: run it in a pod with a service account, or give --kubeconfig: %w", err)
	}
	return c, nil
}

// protobuf returns a copy of the configuration for Kubernetes' own kinds.
func protobuf(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return config
}
