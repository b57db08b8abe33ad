package main

import (
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	_ "github.com/open-policy-agent/cert-controller/pkg/rotator"
)

func newCommand() *cobra.Command {
	return &cobra.Command{
		Use:           "guard-webhook",
		Short:         "Serve the admission rules of Kubelet Guard",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			_, err := ctrl.NewManager(&rest.Config{}, ctrl.Options{})
			return err
		},
	}
}
