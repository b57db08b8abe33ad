package fleet

import (
	"context"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"

	"kubelet-guard.io/node-e2e/suite"
)

// kubeVersion names the folder with the programs of the control plane.
const kubeVersion = suite.KubeVersion

func kubectlProgram() string { return filepath.Join(outputDir, kubeVersion, "kubectl") }
func pluginProgram() string  { return filepath.Join(outputDir, "bin", "kubectl-guard") }
func webhookProgram() string { return filepath.Join(outputDir, "bin", "guard-webhook") }

// answer is what a run of kubectl gave.
type answer struct{ suite.Answer }

func (a answer) expectDone() answer {
	GinkgoHelper()
	return answer{a.ExpectDone()}
}

func (a answer) expectRefused(texts ...string) answer {
	GinkgoHelper()
	return answer{a.ExpectRefused(texts...)}
}

// kubectl runs the real kubectl as the administrator, with the project's plugin, and
// returns what it printed. It fails the spec unless kubectl succeeds.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	return tryKubectl(ctx, args...).expectDone().Stdout
}

// tryKubectl is kubectl for commands that may fail.
func tryKubectl(ctx context.Context, args ...string) answer {
	program := suite.Kubectl{Program: kubectlProgram(), Kubeconfig: cluster.Kubeconfig(), PluginDir: filepath.Dir(pluginProgram())}
	return answer{program.Run(ctx, args...)}
}
