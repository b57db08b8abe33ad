// Package version is the verb version: the version of this program, and those of the pools.
package version

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
	"kubelet-guard.io/pkg/version"
)

// versions are what kubectl guard version shows.
type versions struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Client     string        `json:"client"`
	Pools      []poolVersion `json:"pools,omitempty"`
}

// poolVersion is what a pool runs, and whether this program understands it.
type poolVersion struct {
	Pool           string `json:"pool"`
	Image          string `json:"image,omitempty"`
	KubeletVersion string `json:"kubeletVersion,omitempty"`
	RequestID      string `json:"requestID,omitempty"`
	// Problem is why this program cannot read the request: plugin and installers are of
	// releases that differ too much.
	Problem string `json:"problem,omitempty"`
}

type options struct {
	*factory.Factory
	output *printer.Output
	client bool
}

// NewCommand returns the verb version.
func NewCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New(printer.FormatTable, printer.FormatWide)}
	command := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program, and the images of the installers",
		Long: `Show the version of this program, and the images and requests of the installers, and
whether this program understands them.`,
		Example: `  kubectl guard version
  kubectl guard version --client`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	command.Flags().BoolVar(&o.client, "client", false, "The version of this program only; no cluster is queried")
	return command
}

func (o *options) Validate() error { return o.output.Validate() }

func (o *options) Run(ctx context.Context) error {
	v := versions{APIVersion: printer.APIVersion, Kind: "Versions", Client: version.String()}
	if !o.client {
		c, err := o.Connect()
		if err != nil {
			return err
		}
		f := &pool.Fleet{}
		if err := f.ReadPools(ctx, c.Kube); err != nil {
			// Most users may not read the pools.
			o.Warn("the installers are not shown: %v", err)
		}
		for _, p := range f.Pools {
			item := poolVersion{Pool: p.Name}
			if p.Problem != nil {
				item.Problem = p.Problem.Error()
			} else if request, err := rollout.RequestOf(p.Set); err == nil {
				item.Image, item.KubeletVersion, item.RequestID = request.Image, request.KubeletVersion, request.ID()
			}
			for _, container := range p.Set.Spec.Template.Spec.Containers {
				item.Image = cmp.Or(item.Image, container.Image)
			}
			v.Pools = append(v.Pools, item)
		}
	}
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, &v)
	}
	fmt.Fprintf(o.Out, "kubectl guard: %s\n", v.Client)
	if len(v.Pools) == 0 {
		return nil
	}
	fmt.Fprintln(o.Out)
	var rows [][]any
	for _, p := range v.Pools {
		rows = append(rows, []any{p.Pool, printer.OrNone(p.KubeletVersion), printer.OrNone(p.RequestID), p.Image})
		if p.Problem != "" {
			o.Warn("pool %s cannot be read by this program, which may be older or newer than its installers: %s", p.Pool, p.Problem)
		}
	}
	return printer.PrintTable(o.Out, o.output.Wide(), []printer.Column{{Name: "Pool"}, {Name: "Kubelet"}, {Name: "Request"}, {Name: "Image"}}, rows)
}
