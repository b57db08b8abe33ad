package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/cluster/kind"
)

// fleetPart is a part of the fleet suite that runs next to the others, on nodes of its
// own: most of the suite is waiting.
type fleetPart struct {
	name string
	// labels is the filter that selects the part's specs.
	labels string
	// pair is the pair of workers that it compares, 0 for none.
	pair int
}

var (
	// fleetParts need two workers each in the pools stock and guarded.
	fleetParts = []fleetPart{
		{name: "away", labels: "away", pair: 1},
		{name: "present", labels: "!away && !rollout", pair: 2},
		{name: "rollout", labels: "rollout && !faults", pair: 0},
		{name: "faults", labels: "rollout && faults", pair: 0},
	}
	// wholeFleet is for a cluster with one.
	wholeFleet = []fleetPart{{name: "fleet", pair: 1}}
	// withoutPair is for a cluster with none, as of make test-upgrade.
	withoutPair = []fleetPart{{name: "fleet", labels: "rollout", pair: 0}}
)

// partsFor are the parts for a cluster with so many pairs of workers.
func partsFor(pairs int) []fleetPart {
	switch pairs {
	case 0:
		return withoutPair
	case 1:
		return wholeFleet
	}
	return fleetParts
}

// fleetOptions are what the parts have in common.
type fleetOptions struct {
	// labels is the user's label filter.
	labels string
	// manifests is the folder with the manifests.
	manifests string
	// attempts is how often a failing spec is tried.
	attempts int
}

// filter adds the user's label filter to the part's.
func (p fleetPart) filter(user string) string { return allOf(p.labels, user) }

// allOf joins label filters; an empty one selects everything.
func allOf(filters ...string) string {
	var terms []string
	for _, filter := range filters {
		if filter != "" {
			terms = append(terms, "("+filter+")")
		}
	}
	return strings.Join(terms, " && ")
}

func newFleetCommand(o *options) *cobra.Command {
	var suite fleetOptions
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Run the fleet suite on a kind cluster that is up",
		Long: `Run the fleet suite on a kind cluster that is up. With two workers each in the pools
stock and guarded its parts run at the same time, otherwise one after the other; without
workers in these pools, only the specs of roll-outs run.
The results go to standard output, progress to standard error, and the logs of the
parts to <output>/e2e/fleet/.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.cluster == "" {
				return errors.New("--cluster is not set: name a kind cluster that is up")
			}
			cluster, err := kind.Attach(cmd.Context(), o.outputDir, o.cluster)
			if err != nil {
				return fmt.Errorf("--cluster: %w", err)
			}
			parts := partsFor(min(len(cluster.Pool("stock")), len(cluster.Pool("guarded"))))
			return o.runFleet(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), parts, suite)
		},
	}
	cmd.Flags().StringVar(&suite.labels, "label-filter", "", "Ginkgo label filter, in addition to those of the parts")
	cmd.Flags().IntVar(&suite.attempts, "attempts", 1, "how often a failing spec is tried; a container that ended against expectation is a failure anyhow")
	cmd.Flags().StringVar(&suite.manifests, "manifests", "manifests", "folder with the manifests")
	return cmd
}

// runFleet runs the parts at the same time. Their progress goes to progress, and the
// results of all of them to out.
func (o *options) runFleet(ctx context.Context, out, progress io.Writer, parts []fleetPart, suite fleetOptions) error {
	var runs []suiteRun
	for _, part := range parts {
		runs = append(runs, suiteRun{
			name: part.name, program: "fleet-e2e.test", test: "TestFleet", target: "make fleet-e2e",
			files:  filepath.Join(o.outputDir, "e2e", "fleet", part.name),
			labels: part.filter(suite.labels),
			arguments: []string{
				"-cluster=" + o.cluster,
				"-manifests=" + suite.manifests,
				fmt.Sprintf("-pair=%d", part.pair),
				fmt.Sprintf("-ginkgo.flake-attempts=%d", suite.attempts),
			},
		})
	}
	return finish(out, o.runAll(ctx, progress, len(runs), runs))
}
