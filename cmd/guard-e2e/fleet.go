package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/kind"
	"kubelet-guard.io/node-e2e/specreport"
)

// fleetProgram is the compiled fleet suite in <output>/bin.
const fleetProgram = "fleet-e2e.test"

// fleetPart is a part of the fleet suite that runs beside the others, on nodes of its
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
)

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
stock and guarded its parts run at the same time, otherwise one after the other.
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
			parts := fleetParts
			if len(cluster.Pool("stock")) < 2 || len(cluster.Pool("guarded")) < 2 {
				parts = wholeFleet
			}
			return o.runFleet(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), parts, suite)
		},
	}
	cmd.Flags().StringVar(&suite.labels, "label-filter", "", "Ginkgo label filter, in addition to those of the parts")
	cmd.Flags().IntVar(&suite.attempts, "attempts", 1, "how often a failing spec is tried; a container that ended against expectation is a failure anyhow")
	cmd.Flags().StringVar(&suite.manifests, "manifests", "manifests", "folder with the manifests")
	return cmd
}

// runFleet runs the parts at the same time. Their progress goes to progress, and what
// their logs end with, added up, to out.
func (o *options) runFleet(ctx context.Context, out, progress io.Writer, parts []fleetPart, suite fleetOptions) error {
	counts, errs, logs := make([]specreport.Counts, len(parts)), make([]error, len(parts)), make([]string, len(parts))
	started := time.Now()
	var lock sync.Mutex
	var wait sync.WaitGroup
	for i, part := range parts {
		wait.Go(func() {
			report := func(line string) {
				lock.Lock()
				defer lock.Unlock()
				fmt.Fprintf(progress, "%s %-8s %s\n", elapsed(started), part.name, line)
			}
			logs[i] = filepath.Join(o.outputDir, "e2e", "fleet", part.name+".log")
			errs[i] = o.runFleetPart(ctx, part, suite, logs[i], report)
		})
	}
	wait.Wait()
	var sum specreport.Counts
	for i, part := range parts {
		var err error
		if counts[i], err = copyResults(out, logs[i]); err != nil {
			errs[i] = errors.Join(errs[i], err)
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("part %s of the fleet suite, see %s: %w", part.name, logs[i], errs[i])
		}
		sum = sum.Plus(counts[i])
	}
	err := errors.Join(errs...)
	if err != nil && sum.Failed == 0 {
		sum.Failed = 1 // a part broke before its specs could fail
	}
	fmt.Fprintln(out, sum)
	return err
}

// runFleetPart runs one part to its end. It fails if a spec does.
func (o *options) runFleetPart(ctx context.Context, part fleetPart, suite fleetOptions, logFile string, report func(string)) (err error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return err
	}
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	cmd := exec.CommandContext(ctx, filepath.Join(o.outputDir, "bin", fleetProgram),
		"-test.run=^TestFleet$", "-test.timeout=0",
		"-cluster="+o.cluster, "-output="+o.outputDir, "-manifests="+suite.manifests,
		fmt.Sprintf("-pair=%d", part.pair), fmt.Sprintf("-keep=%t", o.keep),
		"-ginkgo.label-filter="+part.filter(suite.labels),
		fmt.Sprintf("-ginkgo.flake-attempts=%d", suite.attempts),
		fmt.Sprintf("-ginkgo.fail-fast=%t", o.failFast), "-ginkgo.no-color")
	cmd.Stdout = log
	lines, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	// A group of its own: see runSuite.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = cleanupTime
	if err := cmd.Start(); err != nil {
		return err
	}
	for scanner := bufio.NewScanner(lines); scanner.Scan(); {
		report(scanner.Text())
	}
	return cmd.Wait()
}

// copyResults copies the figures and the failures from the log of a part, and returns
// the counts in its last line.
func copyResults(out io.Writer, logFile string) (specreport.Counts, error) {
	content, err := os.ReadFile(logFile)
	if err != nil {
		return specreport.Counts{}, err
	}
	last := ""
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "FAILED: ") || strings.HasPrefix(line, "FOUND: ") {
			fmt.Fprintln(out, line)
		}
		if line != "" {
			last = line
		}
	}
	return specreport.ParseCounts(last)
}
