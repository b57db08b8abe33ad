// Package cli has the verbs of kubectl guard. Each verb is a struct of its
// options with the methods complete (arguments to what is asked for), and run.
//
// What is held is known to the kubelets alone, since the object of a held pod may
// be gone: every verb begins with asking nodes. A node that does not answer never
// fails a command; it is shown.
package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// fieldManager is in managedFields of what this program writes, and its user
// agent.
const fieldManager = "kubectl-guard"

// NewCommand returns the command kubectl guard. Errors are returned, not printed.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	return newCommand(newSettings(streams, time.Now, time.Second))
}

func newCommand(s *settings) *cobra.Command {
	command := &cobra.Command{
		Use:   "kubectl-guard",
		Short: "Show and release what Kubelet Guard holds",
		Long: `Show and release what Kubelet Guard holds.

A guarded kubelet never stops a pod labelled ` + guard.ExplicitDeletionLabel + `=` + guard.ExplicitDeletionRequired + `
unless its deletion was asked for through the API. A pod that it would have stopped
otherwise is held: it runs on until its deletion is asked for, or the cause is over.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          onlyCommands,
		Version:       clientVersion(),
		RunE:          func(command *cobra.Command, _ []string) error { return command.Help() },
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl guard"},
	}
	command.SetIn(s.In)
	command.SetOut(s.Out)
	command.SetErr(s.ErrOut)
	s.flags.AddFlags(command.PersistentFlags())
	command.PersistentFlags().DurationVar(&s.nodeTimeout, "node-timeout", nodes.DefaultTimeout, "How long one kubelet may take to answer")
	command.AddCommand(
		newStatusCommand(s), newHoldsCommand(s), newWhyCommand(s),
		newReleaseCommand(s), newProtectCommand(s), newUnprotectCommand(s),
		newRolloutCommand(s), newVersionCommand(s),
	)
	completeFlags(s, command)
	return command
}

// settings are what all verbs share.
type settings struct {
	genericiooptions.IOStreams
	*prompter
	flags       *genericclioptions.ConfigFlags
	nodeTimeout time.Duration
	now         func() time.Time
	// poll is how often a kubelet is asked that something is awaited of.
	poll time.Duration
}

// newSettings returns the settings of one command. now is its clock.
func newSettings(streams genericiooptions.IOStreams, now func() time.Time, poll time.Duration) *settings {
	return &settings{
		IOStreams: streams,
		prompter:  newPrompter(streams.In, streams.Out),
		flags:     genericclioptions.NewConfigFlags(true),
		now:       now,
		poll:      poll,
	}
}

// clients are for one cluster.
type clients struct {
	kube     kubernetes.Interface
	metadata metadata.Interface
	records  record.Client
	nodes    nodes.Asker
	// namespace is that of -n or of the kubeconfig; explicit: it was given with -n.
	namespace string
	explicit  bool
}

func (s *settings) connect() (*clients, error) {
	config, err := s.flags.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	// What runs at a time is bounded where it is started, which is what counts for
	// the kubelets; a rate on top would make a large cluster wait for nothing.
	config.QPS = -1
	config.UserAgent = fieldManager
	namespace, explicit, err := s.flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, fmt.Errorf("the namespace: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &clients{
		kube:      kube,
		metadata:  metadataClient,
		records:   record.Client{Dynamic: dynamicClient, FieldManager: fieldManager},
		nodes:     nodes.Asker{Client: kube, Timeout: s.nodeTimeout},
		namespace: namespace, explicit: explicit,
	}, nil
}

func (s *settings) warn(format string, arguments ...any) {
	fmt.Fprintf(s.ErrOut, "Warning: "+format+"\n", arguments...)
}
