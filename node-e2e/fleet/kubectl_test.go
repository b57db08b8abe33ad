package fleet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// kubeVersion names the folder with the programs of the control plane.
const kubeVersion = "v1.36.3"

func kubectlProgram() string { return filepath.Join(outputDir, kubeVersion, "kubectl") }
func pluginProgram() string  { return filepath.Join(outputDir, "bin", "kubectl-guard") }
func webhookProgram() string { return filepath.Join(outputDir, "bin", "guard-webhook") }

// answer is what a run of kubectl gave.
type answer struct {
	command        string
	stdout, stderr string
	err            error
}

// String shows all of it in failures.
func (a answer) String() string {
	return fmt.Sprintf("$ %s\n%s%s(%v)", a.command, a.stdout, a.stderr, a.err)
}

// expectDone fails unless kubectl succeeded.
func (a answer) expectDone() answer {
	GinkgoHelper()
	Expect(a.err).NotTo(HaveOccurred(), "%s", a)
	return a
}

// expectRefused fails unless kubectl failed and said all of these texts.
func (a answer) expectRefused(texts ...string) answer {
	GinkgoHelper()
	Expect(a.err).To(HaveOccurred(), "%s", a)
	for _, text := range texts {
		Expect(a.stdout+a.stderr).To(ContainSubstring(text), "%s", a)
	}
	return a
}

// kubectl runs the real kubectl as the administrator, with the project's plugin, and
// returns what it printed. It fails the spec unless kubectl succeeds.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	return tryKubectl(ctx, args...).expectDone().stdout
}

// tryKubectl is kubectl for commands that may fail.
func tryKubectl(ctx context.Context, args ...string) answer {
	cmd := exec.CommandContext(ctx, kubectlProgram(), args...)
	// kubectl finds plugins by its path; for the plugin, flags come after its verb.
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+cluster.Kubeconfig(),
		"PATH="+filepath.Dir(pluginProgram())+string(os.PathListSeparator)+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return answer{command: "kubectl " + strings.Join(args, " "), stdout: stdout.String(), stderr: stderr.String(), err: err}
}
