package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

// dryRun is the flag --dry-run.
type dryRun string

const (
	dryRunNone   dryRun = "none"
	dryRunClient dryRun = "client"
	dryRunServer dryRun = "server"
)

// String is part of pflag.Value.
func (d *dryRun) String() string { return string(*d) }

// Type is part of pflag.Value.
func (*dryRun) Type() string { return "string" }

// Set is part of pflag.Value.
func (d *dryRun) Set(value string) error {
	switch dryRun(value) {
	case dryRunNone, dryRunClient, dryRunServer:
		*d = dryRun(value)
		return nil
	}
	return errors.New("must be none, client or server")
}

func (d *dryRun) addFlag(command *cobra.Command) {
	*d = dryRunNone
	flags := command.Flags()
	flags.Var(d, "dry-run", "none; client: only show what would be done; server: have the API server check it, and keep nothing")
	flags.Lookup("dry-run").NoOptDefVal = string(dryRunClient)
	_ = command.RegisterFlagCompletionFunc("dry-run", cobra.FixedCompletions([]string{"none", "client", "server"}, cobra.ShellCompDirectiveNoFileComp))
}

// suffix marks a line about something that was not kept.
func (d *dryRun) suffix() string {
	switch *d {
	case dryRunClient:
		return " (dry run)"
	case dryRunServer:
		return " (server dry run)"
	}
	return ""
}
