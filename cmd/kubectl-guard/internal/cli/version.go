package cli

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"kubelet-guard.io/pkg/rollout"
)

// versions are what kubectl guard version shows.
type versions struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Client     string        `json:"client"`
	Pools      []poolVersion `json:"pools,omitempty"`
}

// poolVersion says what a pool runs, and whether this program understands it.
type poolVersion struct {
	Pool           string `json:"pool"`
	Image          string `json:"image,omitempty"`
	KubeletVersion string `json:"kubeletVersion,omitempty"`
	RequestID      string `json:"requestID,omitempty"`
	// Problem says why this program cannot read the request: plugin and installers are of
	// releases that differ too much.
	Problem string `json:"problem,omitempty"`
}

type versionOptions struct {
	*settings
	output *output
	client bool
}

func newVersionCommand(s *settings) *cobra.Command {
	o := &versionOptions{settings: s, output: newOutput(outputTable, outputWide)}
	command := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program, and the images of the installers",
		Long: `Show the version of this program, and the images and requests of the installers, and
whether this program understands them.`,
		Example: `  kubectl guard version
  kubectl guard version --client`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(command *cobra.Command, _ []string) error { return o.run(command.Context()) },
	}
	o.output.addFlags(command)
	command.Flags().BoolVar(&o.client, "client", false, "The version of this program only; no cluster is asked")
	return command
}

// clientVersion is that of the module, or the commit of a build from source.
func clientVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	version := cmp.Or(info.Main.Version, "unknown")
	if commit := settings["vcs.revision"]; commit != "" && version == "(devel)" {
		version = "commit " + commit[:min(12, len(commit))]
		if settings["vcs.modified"] == "true" {
			version += ", modified"
		}
	}
	return version + ", " + info.GoVersion
}

func (o *versionOptions) run(ctx context.Context) error {
	if err := o.output.check(); err != nil {
		return err
	}
	v := versions{APIVersion: outputVersion, Kind: "Versions", Client: clientVersion()}
	if !o.client {
		c, err := o.connect()
		if err != nil {
			return err
		}
		f := &fleet{}
		if err := f.readPools(ctx, c.kube); err != nil {
			// Most users may not read the pools.
			o.warn("the installers are not shown: %v", err)
		}
		for _, p := range f.pools {
			item := poolVersion{Pool: p.Name}
			if p.problem != nil {
				item.Problem = p.problem.Error()
			} else if request, err := rollout.RequestOf(p.set); err == nil {
				item.Image, item.KubeletVersion, item.RequestID = request.Image, request.KubeletVersion, request.ID()
			}
			for _, container := range p.set.Spec.Template.Spec.Containers {
				item.Image = cmp.Or(item.Image, container.Image)
			}
			v.Pools = append(v.Pools, item)
		}
	}
	if !o.output.forPeople() {
		return o.output.object(o.Out, &v)
	}
	fmt.Fprintf(o.Out, "kubectl guard: %s\n", v.Client)
	if len(v.Pools) == 0 {
		return nil
	}
	fmt.Fprintln(o.Out)
	var rows [][]any
	for _, p := range v.Pools {
		rows = append(rows, []any{p.Pool, orNone(p.KubeletVersion), orNone(p.RequestID), p.Image})
		if p.Problem != "" {
			o.warn("pool %s cannot be read by this program, which may be older or newer than its installers: %s", p.Pool, p.Problem)
		}
	}
	return table(o.Out, o.output.wide(), []column{{name: "Pool"}, {name: "Kubelet"}, {name: "Request"}, {name: "Image"}}, rows)
}

// onlyCommands is the Args of a command that has others and does nothing itself: any
// argument is the name of one that there is not.
func onlyCommands(command *cobra.Command, arguments []string) error {
	if len(arguments) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", arguments[0], command.CommandPath())
	command.SuggestionsMinimumDistance = 2
	for i, suggestion := range command.SuggestionsFor(arguments[0]) {
		if i == 0 {
			text += "; did you mean"
		} else {
			text += " or"
		}
		text += fmt.Sprintf(" %q", suggestion)
	}
	return fmt.Errorf("%s; %s --help lists them", text, command.CommandPath())
}
