package factory

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// Verb is a verb of kubectl guard in the three steps of kubectl's own commands.
type Verb interface {
	// Complete reads the arguments. A Factory has one for verbs without any.
	Complete(command *cobra.Command, arguments []string) error
	// Validate refuses flags and arguments that do not fit, before anything is read.
	Validate() error
	// Run does what the verb is for.
	Run(ctx context.Context) error
}

// Complete reads no arguments.
func (*Factory) Complete(*cobra.Command, []string) error { return nil }

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

// OnlyCommands is the Args of a command that has others and does nothing itself: any
// argument is the name of one that there is not.
func OnlyCommands(command *cobra.Command, arguments []string) error {
	if len(arguments) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", arguments[0], command.CommandPath())
	command.SuggestionsMinimumDistance = 2
	for i, suggestion := range command.SuggestionsFor(arguments[0]) {
		if i == 0 {
			text += "; did you mean"
		} else {
			text += " or"
		}
		text += fmt.Sprintf(" %q", suggestion)
	}
	return fmt.Errorf("%s; %s --help lists them", text, command.CommandPath())
}
