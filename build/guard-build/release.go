package main

import (
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
	"kubelet-guard.io/build/release"
)

func newReleaseCommand(o *options) *cobra.Command {
	m := release.Maker{}
	var output string
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Make the folder of a release",
		Long: `Make the folder of a release from the commit of the checkout: kubelets, packages, images,
the kubectl plugin, manifests, bills of materials, checksums and the provenance statement.
docs/releases.md lists the files.

Without --kube-version it is for all supported upstream versions; --kube-version=1.36,1.37
selects.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if m.Repo, err = build.FindRepo("."); err != nil {
				return err
			}
			if m.Upstreams, err = o.upstreams(m.Repo); err != nil {
				return err
			}
			return m.Make(cmd.Context(), output, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&output, "output", "_output/release", "folder to make; a release there is replaced")
	cmd.Flags().StringVar(&m.Registry, "registry", "registry.example/kubelet-guard", "registry and path that the images will be pushed to")
	cmd.Flags().StringVar(&m.URL, "url", "https://kubelet-guard.io/releases/"+build.Release, "address that the folder will be published at")
	cmd.Flags().StringVar(&m.Builder, "builder", "https://kubelet-guard.io/build/by-hand", "address of who makes the release, for the provenance statement")
	return cmd
}

// upstreams are the pins of a list of versions, those of all supported versions if it is empty.
func (o *options) upstreams(repo build.Repo) ([]build.Upstream, error) {
	if o.kubeVersion == "" {
		return repo.Supported()
	}
	var selected []build.Upstream
	for version := range strings.SplitSeq(o.kubeVersion, ",") {
		u, err := repo.Upstream(version)
		if err != nil {
			return nil, err
		}
		selected = append(selected, u)
	}
	return selected, nil
}

func newVerifyReleaseCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "verify-release DIR",
		Short: "Check the folder of a release as a user would",
		Long: `Check the folder of a release: checksums, names, versions, the content of packages and
images, bills of materials, the provenance statement and the manifest of krew. With the public
key of who publishes it, the signatures come first. Programs for this machine are run with
--version.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return release.Verify(cmd.Context(), args[0], key, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file of the public key of the signatures (cosign.pub)")
	return cmd
}
