package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/build"
)

func run(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(cmd.Context())
	return out.String(), err
}

func TestAnUnsupportedVersionListsThoseSupported(t *testing.T) {
	for _, args := range [][]string{{"kubelet"}, {"kubelet-stock"}, {"control-plane"}, {"test"}, {"tree", "stock"}, {"patches", "apply"}, {"patches", "series"}, {"release"}, {"vulncheck"}} {
		_, err := run(append(args, "--kube-version=1.2.3")...)
		require.ErrorContains(t, err, `no patches for Kubernetes version "1.2.3"; supported: v1.`, args)
		require.ErrorContains(t, err, build.KubeVersion, args)
	}
}

func TestBadArgumentsAreRefused(t *testing.T) {
	for want, args := range map[string][]string{
		`invalid argument "patched"`:         {"tree", "patched"},
		`--tree: "patched" is neither`:       {"test", "--tree=patched"},
		`required flag(s) "to" not set`:      {"patches", "rebase"},
		`--to: "1.36" is not a full version`: {"patches", "rebase", "--to=1.36"},
		`unknown command "kublet"`:           {"kublet"},
		`unknown command "aply"`:             {"patches", "aply"},
	} {
		_, err := run(args...)
		require.ErrorContains(t, err, want, args)
	}
}
