package framework

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
)

// Kubectl is the real kubectl, used as the administrator of a cluster.
type Kubectl struct {
	// Program is kubectl's path.
	Program string
	// Kubeconfig is the file for the cluster.
	Kubeconfig string
	// PluginDir is the folder with kubectl-guard. The default is that kubectl has the
	// plugins that are in this process's path.
	PluginDir string
}

// Run runs kubectl to its end.
func (k Kubectl) Run(ctx context.Context, args ...string) KubectlResult {
	return k.RunWithInput(ctx, "", args...)
}

// RunWithInput is Run with a standard input.
func (k Kubectl) RunWithInput(ctx context.Context, input string, args ...string) KubectlResult {
	cmd := exec.CommandContext(ctx, k.Program, args...)
	// Not as a flag: kubectl looks for a plugin by its first argument.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.Kubeconfig)
	if k.PluginDir != "" {
		cmd.Env = append(cmd.Env, "PATH="+k.PluginDir+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	err := cmd.Run()
	return KubectlResult{Command: "kubectl " + strings.Join(args, " "), Stdout: stdout.String(), Stderr: stderr.String(), Err: err}
}

// KubectlResult is what a run of kubectl gave.
type KubectlResult struct {
	// Command is the command line.
	Command string
	// Stdout and Stderr are what it printed.
	Stdout, Stderr string
	// Err is nil if kubectl succeeded.
	Err error
}

// String shows all of it in failures.
func (r KubectlResult) String() string {
	return fmt.Sprintf("$ %s\n%s%s(%v)", r.Command, r.Stdout, r.Stderr, r.Err)
}

// Output is all that kubectl printed: first its standard output, then its errors.
func (r KubectlResult) Output() string { return r.Stdout + r.Stderr }

// ExpectDone fails the spec unless kubectl succeeded.
func (r KubectlResult) ExpectDone() KubectlResult {
	ginkgo.GinkgoHelper()
	gomega.Expect(r.Err).NotTo(gomega.HaveOccurred(), "%s", r)
	return r
}

// ExpectRefused fails the spec unless kubectl failed and said all of these texts.
func (r KubectlResult) ExpectRefused(texts ...string) KubectlResult {
	ginkgo.GinkgoHelper()
	gomega.Expect(r.Err).To(gomega.HaveOccurred(), "%s", r)
	for _, text := range texts {
		gomega.Expect(r.Output()).To(gomega.ContainSubstring(text), "%s", r)
	}
	return r
}
