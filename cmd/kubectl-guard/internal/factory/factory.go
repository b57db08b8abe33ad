// Package factory has what each verb gets: flags, streams, clock and clients, and the steps
// that all verbs have.
package factory

import (
	"context"
	"fmt"
	"time"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/prompt"
	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
)

// FieldManager is in managedFields of what this program writes, and its user
// agent.
const FieldManager = "kubectl-guard"

// Factory has what all verbs share.
type Factory struct {
	genericiooptions.IOStreams
	*prompt.Prompter
	Flags       *genericclioptions.ConfigFlags
	NodeTimeout time.Duration
	Now         func() time.Time
	// Poll is the interval between two queries while a verb waits.
	Poll time.Duration
}

// New returns a factory for one command. now is its clock.
func New(streams genericiooptions.IOStreams, now func() time.Time, poll time.Duration) *Factory {
	return &Factory{
		IOStreams: streams,
		Prompter:  prompt.New(streams.In, streams.Out),
		Flags:     genericclioptions.NewConfigFlags(true),
		Now:       now,
		Poll:      poll,
	}
}

// Clients are for one cluster.
type Clients struct {
	Kube     kubernetes.Interface
	Metadata metadata.Interface
	Records  record.Client
	Nodes    nodes.Querier
	// Namespace is that of -n or of the kubeconfig; NamespaceGiven: it was given with -n.
	Namespace      string
	NamespaceGiven bool
}

// Connect returns the clients for the cluster of the flags.
func (s *Factory) Connect() (*Clients, error) {
	config, err := s.Flags.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	// What runs at a time is bounded where it is started, which is what counts for
	// the kubelets; a rate on top would make a large cluster wait for nothing.
	config.QPS = -1
	config.UserAgent = FieldManager
	namespace, explicit, err := s.Flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, fmt.Errorf("the namespace: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Clients{
		Kube:      kube,
		Metadata:  metadataClient,
		Records:   record.Client{Kube: kube, FieldManager: FieldManager},
		Nodes:     nodes.Querier{Client: kube, Timeout: s.NodeTimeout},
		Namespace: namespace, NamespaceGiven: explicit,
	}, nil
}

// Query connects, and queries the kubelets of the named nodes, or of all.
func (s *Factory) Query(ctx context.Context, names ...string) (*Clients, []nodes.Response, error) {
	c, err := s.Connect()
	if err != nil {
		return nil, nil, err
	}
	responses, err := c.Nodes.Query(ctx, names...)
	return c, responses, err
}

// Warn prints a warning on stderr.
func (s *Factory) Warn(format string, arguments ...any) {
	fmt.Fprintf(s.ErrOut, "Warning: "+format+"\n", arguments...)
}

// InParallel calls do for 0 to n-1, for 16 at a time.
func InParallel(n int, do func(int)) {
	// Not the context of the requests: each of them ends with it by itself.
	workqueue.ParallelizeUntil(context.Background(), 16, n, do)
}
