package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	e2e "kubelet-guard.io/node-e2e"
)

// suiteProgram is the compiled node suite in <output>/bin.
const suiteProgram = "node-e2e.test"

// cleanupTime is how long an interrupted suite may take to remove its cluster,
// before it is killed.
const cleanupTime = 4 * time.Minute

// options are the flags of all subcommands.
type options struct {
	outputDir, provider string
	// cluster is the cluster that the suites of both kubelets use; empty gives each one
	// of its own.
	cluster        string
	keep, failFast bool
}

// suitePart is a run of the node suite on a cluster of its own: for one kubelet, the
// specs that a label filter selects.
type suitePart struct {
	kubelet e2e.Variant
	// name is that of the folder in <output>/e2e, and of the cluster unless the user
	// names one.
	name   string
	labels string
}

// whole is a part for each of the kubelets.
func whole(labels string, kubelets ...e2e.Variant) []suitePart {
	var parts []suitePart
	for _, kubelet := range kubelets {
		parts = append(parts, suitePart{kubelet: kubelet, name: string(kubelet), labels: labels})
	}
	return parts
}

// clusterOf is the name of the cluster that a part uses.
func (o *options) clusterOf(part suitePart) string {
	return cmp.Or(o.cluster, part.name)
}

// outcome is what came of one part.
type outcome struct {
	kubelet e2e.Variant
	results e2e.Results
	// err is set when the suite failed, and when there are no results to trust.
	err error
}

// partsAtOnce is how many parts run side by side. With a third cluster two processors
// are busy all the time, and the suite takes longer, not shorter.
const partsAtOnce = 2

// runSuites runs the parts side by side, two at a time and in their order, with further
// arguments for the suite. Progress goes to w.
func (o *options) runSuites(ctx context.Context, w io.Writer, parts []suitePart, arguments ...string) []outcome {
	outcomes := make([]outcome, len(parts))
	var lock sync.Mutex
	var group errgroup.Group
	group.SetLimit(partsAtOnce)
	started := time.Now()
	for i, part := range parts {
		group.Go(func() error {
			report := func(line string) {
				lock.Lock()
				defer lock.Unlock()
				fmt.Fprintf(w, "%s %-9s %s\n", elapsed(started), part.name, line)
			}
			outcomes[i].kubelet = part.kubelet
			outcomes[i].results, outcomes[i].err = o.runSuite(ctx, part, arguments, report)
			return nil
		})
	}
	_ = group.Wait()
	return outcomes
}

func elapsed(since time.Time) string {
	seconds := int(time.Since(since).Seconds())
	return fmt.Sprintf("%02d:%02d", seconds/60, seconds%60)
}

// runSuite runs one part and returns its results. The error also says that specs failed,
// in which case the results hold which.
func (o *options) runSuite(ctx context.Context, part suitePart, arguments []string, report func(string)) (results e2e.Results, err error) {
	program := filepath.Join(o.outputDir, "bin", suiteProgram)
	if _, err := os.Stat(program); err != nil {
		return results, fmt.Errorf("the node suite is not built (make node-e2e): %w", err)
	}
	dir := filepath.Join(o.outputDir, "e2e", part.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return results, err
	}
	resultsFile := filepath.Join(dir, "results.json")
	if err := os.Remove(resultsFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return results, fmt.Errorf("remove the results of the last run: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "suite.log"))
	if err != nil {
		return results, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	cmd := exec.CommandContext(ctx, program, append([]string{
		"-test.run=^TestNode$",
		"-provider=" + o.provider,
		"-kubelet=" + string(part.kubelet),
		"-cluster=" + o.clusterOf(part),
		"-artifacts=" + part.name,
		"-output=" + o.outputDir,
		"-results=" + resultsFile,
		fmt.Sprintf("-keep=%t", o.keep),
		"-attached",
		"-ginkgo.label-filter=" + part.labels,
		fmt.Sprintf("-ginkgo.fail-fast=%t", o.failFast),
		"-ginkgo.no-color", "-ginkgo.v",
	}, arguments...)...)
	cmd.Stdout = log
	progress, err := cmd.StderrPipe()
	if err != nil {
		return results, err
	}
	// Held open until the suite has ended; the suite cleans up when it closes
	// because this program was killed.
	if _, err := cmd.StdinPipe(); err != nil {
		return results, err
	}
	// A group of its own keeps the terminal's Ctrl-C from the suite, which would
	// take a second one, from here, as an order to leave its cluster behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		report("interrupted, cleaning up")
		return cmd.Process.Signal(os.Interrupt)
	}
	cmd.WaitDelay = cleanupTime
	if err := cmd.Start(); err != nil {
		return results, err
	}
	lines := bufio.NewScanner(progress)
	for lines.Scan() {
		report(lines.Text())
	}
	failed := cmd.Wait()
	results, err = e2e.ReadResults(resultsFile)
	if err != nil {
		// Without results, the suite may not have come to its clean-up either.
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		left := e2e.RemoveCluster(cleanup, o.provider, e2e.Options{ClusterName: o.clusterOf(part), OutputDir: o.outputDir, Kubelet: part.kubelet})
		err = errors.Join(err, left)
	}
	switch {
	case ctx.Err() != nil:
		return results, fmt.Errorf("the %s suite was interrupted: %w", part.name, failed)
	case err != nil:
		return results, fmt.Errorf("the %s suite ended without results, see %s: %w", part.name, log.Name(), errors.Join(failed, err))
	case failed != nil:
		return results, fmt.Errorf("the %s suite failed, see %s: %w", part.name, log.Name(), failed)
	}
	return results, nil
}
