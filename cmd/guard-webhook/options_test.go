package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/admission"
)

func TestValidate(t *testing.T) {
	files := t.TempDir()
	for _, name := range []string{"tls.crt", "tls.key"} {
		require.NoError(t, os.WriteFile(filepath.Join(files, name), nil, 0o600))
	}
	empty := t.TempDir()

	tests := []struct {
		name      string
		arguments []string
		// callers: the arguments say who may call.
		callers bool
		want    admission.Modes
		wantErr string
	}{
		{name: "the defaults enforce", want: admission.Modes{Default: admission.Enforce, ByRule: map[admission.RuleName]admission.Mode{}}},
		{
			name: "modes by rule", arguments: []string{"--mode=Audit", "--rule-mode=NodeDeletion=Enforce", "--rule-mode=Replicas=Audit"},
			want: admission.Modes{Default: admission.Audit, ByRule: map[admission.RuleName]admission.Mode{admission.NodeDeletion: admission.Enforce, admission.Replicas: admission.Audit}},
		},
		{name: "given certificates", arguments: []string{"--cert-dir=" + files}, want: admission.Modes{Default: admission.Enforce, ByRule: map[admission.RuleName]admission.Mode{}}},
		{name: "given callers", callers: true, arguments: []string{"--caller-ca-file=ca.crt", "--caller-names=a,b"}, want: admission.Modes{Default: admission.Enforce, ByRule: map[admission.RuleName]admission.Mode{}}},
		{
			name: "nobody says who may call", callers: true,
			wantErr: "--caller-ca-file: is required, so that only reviews of the API servers are judged; where they cannot be given a client certificate, use --allow-any-caller",
		},
		{name: "some and everybody", callers: true, arguments: []string{"--caller-ca-file=ca.crt", "--caller-names=a", "--allow-any-caller"}, wantErr: "--allow-any-caller: contradicts --caller-ca-file"},
		{
			name: "everybody of an authority", callers: true, arguments: []string{"--caller-ca-file=ca.crt"},
			wantErr: "--caller-names: is required with --caller-ca-file: the authority of a cluster signs the certificates of its nodes, too",
		},
		{name: "names of no authority", arguments: []string{"--caller-names=a"}, wantErr: "--caller-names: needs --caller-ca-file"},
		{name: "an unknown mode", arguments: []string{"--mode=Warn"}, wantErr: `--mode: unknown mode "Warn"; the modes are Enforce and Audit`},
		{
			name: "an unknown rule", arguments: []string{"--rule-mode=Nodes=Audit"},
			wantErr: fmt.Sprintf(`--rule-mode: unknown rule "Nodes"; the rules are %s`, strings.Join(ruleNames(), ", ")),
		},
		{
			name: "several mistakes at once", arguments: []string{"--port=0", "--override-limit=1s", "--namespace=Guard", "--health-address=8081", "--record-ttl=1m", "--shutdown-delay=-1s"},
			wantErr: `--override-limit: 1s is less than 1m0s
--record-ttl: 1m0s is less than 1h0m0s
--shutdown-delay: -1s is less than 0s
--namespace: "Guard" is not a name: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
--port: 0: must be between 1 and 65535, inclusive
--health-address: "8081" is not an address such as :8080`,
		},
		{
			name: "a folder without certificates", arguments: []string{"--cert-dir=" + empty},
			wantErr: "--cert-dir: " + empty + " needs a file tls.crt and a file tls.key: stat " + filepath.Join(empty, "tls.crt") + ": no such file or directory",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			options := newOptions("")
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			options.addFlags(flags)
			if !test.callers {
				test.arguments = append(test.arguments, "--allow-any-caller")
			}
			require.NoError(t, flags.Parse(test.arguments))
			got, err := options.validate()
			if test.wantErr != "" {
				require.EqualError(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestNamespaceOfThePod(t *testing.T) {
	require.Equal(t, "kubelet-guard-system", newOptions("").namespace)
	require.Equal(t, "guards", newOptions("guards").namespace)
}
