// Package release is the verb release: it writes PodDeletion records for held pods whose object
// is gone, and waits for their kubelets.
package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// defaultTimeout covers a look-up of the kubelet (30 s at worst) and the
	// default grace period of a pod (30 s), with room for a busy node.
	defaultTimeout = 90 * time.Second
	// DefaultRecordTTL is how long a record is kept unless --record-ttl sets another time.
	DefaultRecordTTL = guardv1alpha1.PodDeletionLifetime
)

// released is one item of the output of kubectl guard release.
type released struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// Node is empty when no node that responds knows the pod.
	Node string `json:"node,omitempty"`
	// Record is Created, or Existed when there was one before.
	Record string `json:"record"`
	// Taken and Ended are seconds from the record to when the kubelet was seen to
	// have taken it as evidence, and to when its guard had forgotten the pod, which
	// it does no earlier than half a minute after the object went away.
	Taken *float64 `json:"takenSeconds,omitempty"`
	Ended *float64 `json:"endedSeconds,omitempty"`
}

type options struct {
	*factory.Factory
	output *printer.Output
	dryRun dryrun.Strategy

	pod     string
	uid     string
	node    string
	all     bool
	yes     bool
	reason  string
	ttl     time.Duration
	timeout time.Duration
}

// NewCommand returns the verb release.
func NewCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New()}
	command := &cobra.Command{
		Use:   "release (POD | --uid=UID | --all --node=NODE)",
		Short: "Let the kubelet end held pods whose object is gone",
		Long: `Let the kubelet end held pods whose object is gone.

A held pod whose object is still there is deleted as usual: kubectl delete pod. For
one whose object is gone, this writes a PodDeletion record, named by the UID of the
pod. The kubelet looks for it every 10 to 12 seconds and then terminates the pod with its
own grace period. A later pod of the same name is not touched.

With --uid and POD together a record can be written before any node looks for it:
after a forced delete while the node was cut off, it lets the kubelet end the pod
when the node is back.`,
		Example: `  kubectl guard release web-0
  kubectl guard release --all --node worker-3 --dry-run=client
  kubectl guard release web-0 --uid 3f0d4c1e-8d0e-4f0b-9a57-0c1f6a3b2d10 --yes`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completion.HeldPods(s),
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	o.dryRun.AddFlag(command, true)
	flags := command.Flags()
	flags.StringVar(&o.uid, "uid", "", "UID of the pod, for a name that several held pods had")
	completion.AddNodeFlag(s, command, &o.node)
	flags.BoolVar(&o.all, "all", false, "Release every held pod of --node whose object is gone, of all namespaces unless -n is given")
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask")
	flags.StringVar(&o.reason, "reason", "", "Why, for the record")
	flags.DurationVar(&o.ttl, "record-ttl", DefaultRecordTTL, "How long the record is to be kept; 0: for ever")
	flags.DurationVar(&o.timeout, "timeout", defaultTimeout, "How long to wait for the pods to end; 0: do not wait")
	for _, flag := range []string{"uid", "reason"} {
		_ = command.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return command
}

func (o *options) Complete(_ *cobra.Command, arguments []string) (err error) {
	if len(arguments) == 1 {
		o.pod, err = pods.ParseArgument(arguments[0])
	}
	return err
}

func (o *options) Validate() error {
	switch {
	case o.all && (o.pod != "" || o.uid != ""):
		return errors.New("--all goes with --node, not with a pod or --uid")
	case o.all && o.node == "":
		return errors.New("--all needs --node: there is no release of a whole cluster at once")
	case !o.all && o.pod == "" && o.uid == "":
		return errors.New("which pod? give POD, --uid=UID, or --all --node=NODE")
	case o.ttl < 0:
		return errors.New("--record-ttl must not be negative")
	case o.timeout < 0:
		return errors.New("--timeout must not be negative")
	case !o.output.HumanReadable() && !o.yes && o.dryRun == dryrun.None:
		return errors.New("--output for programs leaves no room for a question: give --yes or --dry-run")
	}
	return o.output.Validate()
}

func (o *options) Run(ctx context.Context) error {
	c, responses, err := o.Query(ctx, o.node)
	if err != nil {
		return err
	}
	pods, err := o.choose(ctx, c, responses)
	if err != nil || len(pods) == 0 {
		return err
	}
	if o.output.HumanReadable() {
		if err := o.explain(pods); err != nil {
			return err
		}
	}
	if !o.yes && o.dryRun == dryrun.None {
		if err := o.Confirm(ctx, fmt.Sprintf("Release pods: %d?", len(pods))); err != nil {
			return err
		}
	}
	return o.release(ctx, c, pods)
}

// explain shows what will happen.
func (o *options) explain(chosen []pods.Pod) error {
	columns := []printer.Column{{Name: "Namespace"}, {Name: "Pod"}, {Name: "Node"}, {Name: "Cause"}, {Name: "Since"}, {Name: "Object"}, {Name: "UID"}}
	var rows [][]any
	waiting, successors, gone := 0, 0, 0
	for _, pod := range chosen {
		since, _ := pods.HoldTimes(pod.Holds)
		node := pod.Node
		if node == "" {
			node = "<unknown>"
			waiting++
		}
		cause := pods.CausesOf(pod.Holds, false)
		if cause == "" {
			cause = printer.None
		}
		if pod.Object == pods.Replaced {
			successors++
		} else {
			gone++
		}
		rows = append(rows, []any{pod.Namespace, pod.Name, node, cause, printer.Age(o.Now(), since), string(pod.Object), string(pod.UID)})
	}
	if err := printer.PrintTable(o.Out, false, columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	if waiting > 0 {
		fmt.Fprintln(o.Out, "No node that responds has this pod. The record waits for the node to come back.")
	} else {
		fmt.Fprintln(o.Out, "The kubelet will terminate each pod with its own grace period. This cannot be undone.")
	}
	if successors > 0 {
		fmt.Fprintln(o.Out, "A later pod of the same name is not touched.")
	}
	if gone > 0 {
		fmt.Fprintln(o.Out, "Where no object is left, see that a replacement runs if one is needed.")
	}
	return nil
}

// print prints progress for humans.
func (o *options) print(format string, arguments ...any) {
	if o.output.HumanReadable() {
		fmt.Fprintf(o.Out, format+"\n", arguments...)
	}
}
