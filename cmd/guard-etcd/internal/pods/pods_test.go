package pods

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
)

func TestWrongFlagsAreRefusedByName(t *testing.T) {
	t.Parallel()
	certificate := []string{"--kubelet-client-certificate=c", "--kubelet-client-key=k"}
	for name, test := range map[string]struct {
		flags []string
		want  string
	}{
		"no address":               {flags: []string{"--node=node-1"}, want: `--node: "node-1" is not NAME=ADDRESS`},
		"no name":                  {flags: []string{"--node==10.0.0.1"}, want: "is not NAME=ADDRESS"},
		"a node twice":             {flags: []string{"--node=a=10.0.0.1", "--node=a=10.0.0.2"}, want: "--node: a is given twice"},
		"no certificate":           {flags: []string{"--node=a=10.0.0.1"}, want: "--kubelet-client-certificate"},
		"no CA":                    {flags: append([]string{"--node=a=10.0.0.1"}, certificate...), want: "--kubelet-certificate-authority"},
		"insecure without a node":  {flags: []string{"--insecure-skip-tls-verify-backend"}, want: "goes with --node"},
		"no time":                  {flags: []string{"--wait", "--wait-timeout=0s"}, want: "--wait-timeout must be positive"},
		"a number without --apply": {flags: []string{"--expect=5"}, want: "--expect goes with --apply"},
		"an unknown format":        {flags: []string{"-o=xml"}, want: `unknown format "xml"`},
		"an argument":              {flags: []string{"web"}, want: "unknown command"},
		"no etcd":                  {flags: []string{"--kubeconfig=/nonexistent"}, want: "/nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := factory.New(genericiooptions.NewTestIOStreamsDiscard())
			command := NewCommand(f)
			command.SilenceUsage, command.SilenceErrors = true, true
			f.Connection.AddFlags(command)
			command.SetArgs(test.flags)
			require.ErrorContains(t, command.ExecuteContext(t.Context()), test.want)
		})
	}
}
