// Package pods is the verb pods: it restores, from the nodes that run them, pods whose objects are
// gone.
package pods

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	writer "kubelet-guard.io/cmd/guard-etcd/internal/restore"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/pods"
	"kubelet-guard.io/pkg/dataprotection/restore"
)

const (
	// adoptionInterval is how often the pods are counted.
	adoptionInterval = time.Second
	// defaultWaitTimeout leaves time to apply manifests by hand.
	defaultWaitTimeout = 10 * time.Minute
	// settled is how long after the last adoption new pods are still counted: a workload creates
	// what it lacks at once.
	settled = 5 * time.Second
)

type options struct {
	*writer.Writer
	nodes       []string
	addresses   map[string]string
	insecure    bool
	wait        bool
	waitTimeout time.Duration
}

// NewCommand returns the verb pods.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Writer: &writer.Writer{Factory: f}}
	command := &cobra.Command{
		Use:   "pods",
		Short: "Restore the pods that guarded nodes hold without an object",
		Long: `Restore the pods that guarded nodes hold and whose objects are gone, after a
restore of an old snapshot or with an empty etcd. Their containers run on.
Without --apply it shows the plan and writes nothing.

A pod whose deletion was requested stays gone. Owners that are gone are no
longer referred to, and noted in the annotation kubelet-guard.io/lost-owner:
apply their workloads again, and they adopt the pods. Claims that are gone come
back with their volumes. What would be deleted again at once is left out; its
node still holds it.`,
		Example: `  guard-etcd pods
  guard-etcd pods --apply --expect=140
  kubectl apply -f workloads/
  guard-etcd pods --wait

  # Nodes that have no Node object yet: what do they hold?
  guard-etcd pods --node=node-1=10.0.0.11 --node=node-2=10.0.0.12`,
		Args: cobra.NoArgs,
		RunE: verb.RunE(o),
	}
	o.Writer.AddFlags(command)
	f.Connection.AddKubeletFlags(command)
	flags := command.Flags()
	flags.StringArrayVar(&o.nodes, "node", nil, "NAME=ADDRESS of a node whose kubelet is queried directly; without, all nodes through the API server")
	flags.BoolVar(&o.insecure, "insecure-skip-tls-verify-backend", false, "With --node: do not verify the kubelets' certificates, as an API server without --kubelet-certificate-authority")
	flags.BoolVar(&o.wait, "wait", false, "Wait until controllers have adopted the restored pods, and count new pods")
	flags.DurationVar(&o.waitTimeout, "wait-timeout", defaultWaitTimeout, "How long --wait waits")
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(*cobra.Command, []string) error {
	o.addresses = map[string]string{}
	for _, node := range o.nodes {
		name, address, ok := strings.Cut(node, "=")
		if !ok || name == "" || address == "" {
			return fmt.Errorf("--node: %q is not NAME=ADDRESS, as node-1=10.0.0.11", node)
		}
		if _, twice := o.addresses[name]; twice {
			return fmt.Errorf("--node: %s is given twice", name)
		}
		o.addresses[name] = address
	}
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error {
	tls := o.Connection.KubeletTLS()
	switch {
	case o.wait && o.waitTimeout <= 0:
		return errors.New("--wait-timeout must be positive")
	case o.insecure && len(o.addresses) == 0:
		return errors.New("--insecure-skip-tls-verify-backend goes with --node")
	case len(o.addresses) > 0 && (tls.CertFile == "" || tls.KeyFile == ""):
		return errors.New("--node needs a client certificate that kubelets accept: --kubelet-client-certificate and --kubelet-client-key")
	case len(o.addresses) > 0 && tls.CAFile == "" && !o.insecure:
		return errors.New("--node needs the CA of the kubelets' certificates, --kubelet-certificate-authority, or --insecure-skip-tls-verify-backend")
	}
	return o.Writer.Validate()
}

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	clients, err := o.clients()
	if err != nil {
		return err
	}
	var watch *pods.AdoptionWatch
	if o.wait {
		if watch, err = pods.StartAdoptionWatch(ctx, clients.Kube); err != nil {
			return err
		}
	}
	if o.Apply || !o.wait {
		if err := o.restore(ctx, clients); err != nil {
			return err
		}
	}
	if watch == nil {
		return nil
	}
	return o.await(ctx, watch)
}

func (o *options) clients() (pods.Clients, error) {
	config, err := o.Connection.RESTConfig()
	if err != nil {
		return pods.Clients{}, err
	}
	config.QPS = -1
	config.UserAgent = "guard-etcd"
	var c pods.Clients
	if c.Kube, err = kubernetes.NewForConfig(config); err != nil {
		return c, err
	}
	if c.Metadata, err = metadata.NewForConfig(config); err != nil {
		return c, err
	}
	c.API, err = restore.NewAPI(config)
	return c, err
}

// restore plans, and with --apply writes.
func (o *options) restore(ctx context.Context, clients pods.Clients) error {
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	o.FindUnfinished()
	plan, err := o.plan(ctx, clients, func(responses []pods.Response) (*pods.Plan, error) {
		return pods.NewPlan(ctx, responses, decoder, o.Connection.Prefix(), live, clients)
	})
	if err != nil {
		return err
	}
	if !o.Apply {
		return o.show(plan)
	}
	if err := o.Confirm(plan.Plan); err != nil {
		return errors.Join(o.show(plan), err)
	}
	if o.Output.HumanReadable() {
		if err := o.show(plan); err != nil {
			return err
		}
	}
	if err := o.Write(ctx, plan.Plan, client, clients.API); err != nil {
		return err
	}
	if o.Output.HumanReadable() {
		o.showWorkloads(plan.Workloads)
	}
	return nil
}

func (o *options) plan(ctx context.Context, clients pods.Clients, newPlan func([]pods.Response) (*pods.Plan, error)) (*pods.Plan, error) {
	progress := factory.StartProgress(o.ErrOut, "Querying the nodes")
	defer progress.Stop()
	tls := o.Connection.KubeletTLS()
	if tls.Insecure = o.insecure; o.insecure {
		tls.CAFile = ""
	}
	responses, err := pods.Kubelets{Client: clients.Kube, Addresses: o.addresses, TLS: tls}.Query(ctx)
	if err != nil {
		return nil, err
	}
	guarded := false
	for _, r := range responses {
		guarded = guarded || r.Error == "" && !r.Unguarded
		if r.Error != "" {
			o.Warn("node %s: %s", r.Node, r.Error)
		}
	}
	if len(responses) == 0 {
		return nil, errors.New("the API server has no nodes. A running kubelet does not create its Node again: restart the kubelets, which stops no protected pod, or inspect what they hold with --node=NAME=ADDRESS")
	}
	if !guarded {
		o.Warn("no guarded node responded")
	}
	return newPlan(responses)
}

// show prints the plan.
func (o *options) show(plan *pods.Plan) error {
	if !o.Output.HumanReadable() {
		return o.Output.PrintObject(o.Out, "PodsPlan", plan)
	}
	columns := []factory.Column{{Name: "Node"}, {Name: "Kubelet"}, {Name: "Protected"}, {Name: "Without object"}, {Name: "Ending", Wide: true}, {Name: "Note"}}
	var rows [][]any
	for _, r := range plan.Nodes {
		note := r.Error
		if r.Unguarded {
			note = "no guard: its pods are gone"
		}
		rows = append(rows, []any{r.Node, orNone(r.Version), r.Protected, r.Gone, r.Ending, orNone(note)})
	}
	if err := o.Output.PrintTable(o.Out, columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	if err := o.ShowPlan(plan.Plan, fmt.Sprintf("nodes: %d", len(plan.Nodes))); err != nil {
		return err
	}
	if !o.Apply {
		o.showWorkloads(plan.Workloads)
	}
	return nil
}

// showWorkloads prints what is to be applied again.
func (o *options) showWorkloads(workloads []pods.Workload) {
	if len(workloads) == 0 {
		return
	}
	fmt.Fprintln(o.Out, "Apply again what these pods belonged to, once they are restored:")
	for _, w := range workloads {
		note := ""
		if w.Kind == "Job" {
			note = "; a new Job does not adopt them"
		}
		fmt.Fprintf(o.Out, "  %s %s/%s (pods: %d%s)\n", w.Kind, w.Namespace, w.Name, w.Pods, note)
	}
}

// await waits for the adoption of the restored pods.
func (o *options) await(ctx context.Context, watch *pods.AdoptionWatch) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.waitTimeout, fmt.Errorf("not all adopted within %s (--wait-timeout)", o.waitTimeout))
	defer cancel()
	var last pods.Adoption
	var doneSince time.Time
	for {
		adoption, err := watch.Count(ctx)
		if err == nil {
			if adoption.Adopted != last.Adopted || adoption.New != last.New {
				fmt.Fprintf(o.ErrOut, "Adopted: %d of %d; new pods: %d\n", adoption.Adopted, adoption.Restored, adoption.New)
			}
			last = adoption
			switch {
			case !adoption.Done():
				doneSince = time.Time{}
			case doneSince.IsZero():
				doneSince = o.Now()
			case o.Now().Sub(doneSince) >= settled:
				return o.showAdoption(last, nil)
			}
		} else if ctx.Err() == nil {
			o.Warn("%v", err)
		}
		select {
		case <-ctx.Done():
			return o.showAdoption(last, context.Cause(ctx))
		case <-time.After(adoptionInterval):
		}
	}
}

func (o *options) showAdoption(a pods.Adoption, err error) error {
	if !o.Output.HumanReadable() {
		return errors.Join(err, o.Output.PrintObject(o.Out, "PodsAdoption", a))
	}
	fmt.Fprintf(o.Out, "Restored pods that had lost their owners: %d. Adopted by controllers: %d. New pods: %d. Deleted: %d.\n", a.Restored, a.Adopted, a.New, a.Deleted)
	if err != nil && len(a.Waiting) > 0 {
		err = fmt.Errorf("%w: without a controller are %s", err, strings.Join(a.Waiting[:min(len(a.Waiting), 5)], ", "))
	}
	return err
}

func orNone(text string) string {
	if text == "" {
		return "<none>"
	}
	return text
}
