package app

import (
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// notFiles are flags whose values are text, but no files.
var notFiles = []string{"etcd-servers", "etcd-prefix", "include", "key", "namespace"}

// completeNoFiles keeps the shell from offering files where none is meant: for verbs without
// arguments, and for flags with other values. What a verb completes itself stays.
func completeNoFiles(command *cobra.Command) {
	for _, verb := range append(command.Commands(), command) {
		if verb.ValidArgsFunction == nil && verb.Args != nil && verb.Args(verb, []string{"argument"}) != nil {
			verb.ValidArgsFunction = cobra.NoFileCompletions
		}
		complete := func(flag *pflag.Flag) {
			if slices.Contains([]string{"int", "int64", "duration"}, flag.Value.Type()) || slices.Contains(notFiles, flag.Name) {
				_ = verb.RegisterFlagCompletionFunc(flag.Name, cobra.NoFileCompletions) // fails for a flag that has one
			}
		}
		verb.LocalFlags().VisitAll(complete)
	}
}
