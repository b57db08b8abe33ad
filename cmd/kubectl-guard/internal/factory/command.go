package factory

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Complete reads no arguments: the step of verb.Verb for verbs without any.
func (*Factory) Complete(*cobra.Command, []string) error { return nil }

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
