package fleet

import (
	"context"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"

	"kubelet-guard.io/node-e2e/framework"
)

func kubectlProgram() string { return filepath.Join(outputDir, framework.KubeVersion, "kubectl") }
func pluginProgram() string  { return filepath.Join(outputDir, "bin", "kubectl-guard") }
func webhookProgram() string { return filepath.Join(outputDir, "bin", "guard-webhook") }

// kubectl runs the real kubectl as the administrator, with the project's plugin, and
// returns what it printed. It fails the spec unless kubectl succeeds.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	return tryKubectl(ctx, args...).ExpectDone().Stdout
}

// tryKubectl is kubectl for commands that may fail.
func tryKubectl(ctx context.Context, args ...string) framework.Answer {
	return framework.Kubectl{Program: kubectlProgram(), Kubeconfig: cluster.Kubeconfig(), PluginDir: filepath.Dir(pluginProgram())}.Run(ctx, args...)
}
