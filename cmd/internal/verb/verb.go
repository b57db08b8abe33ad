// Package verb has the three steps that the verbs of all programs have.
package verb

import (
	"context"

	"github.com/spf13/cobra"
)

// Verb is a verb in the three steps of kubectl's own commands.
type Verb interface {
	// Complete reads the arguments.
	Complete(command *cobra.Command, arguments []string) error
	// Validate refuses flags and arguments that do not fit, before anything is read.
	Validate() error
	// Run does what the verb is for.
	Run(ctx context.Context) error
}

// RunE returns the RunE of a verb's command.
func RunE(verb Verb) func(*cobra.Command, []string) error {
	return func(command *cobra.Command, arguments []string) error {
		if err := verb.Complete(command, arguments); err != nil {
			return err
		}
		if err := verb.Validate(); err != nil {
			return err
		}
		return verb.Run(command.Context())
	}
}
