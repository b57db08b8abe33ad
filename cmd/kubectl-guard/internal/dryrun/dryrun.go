// Package dryrun has the flag --dry-run.
package dryrun

import (
	"errors"

	"github.com/spf13/cobra"
)

// Strategy is the flag --dry-run.
type Strategy string

const (
	None   Strategy = "none"
	Client Strategy = "client"
	Server Strategy = "server"
)

// String is part of pflag.Value.
func (d *Strategy) String() string { return string(*d) }

// Type is part of pflag.Value.
func (*Strategy) Type() string { return "string" }

// Set is part of pflag.Value.
func (d *Strategy) Set(value string) error {
	switch Strategy(value) {
	case None, Client, Server:
		*d = Strategy(value)
		return nil
	}
	return errors.New("must be none, client or server")
}

// AddFlag adds the flag to a command. Not all can have the API server check what they would do.
func (d *Strategy) AddFlag(command *cobra.Command, server bool) {
	*d = None
	usage, values := "none; client: only show what would be done", []string{"none", "client"}
	if server {
		usage, values = usage+"; server: have the API server check it, and keep nothing", append(values, "server")
	}
	command.Flags().Var(d, "dry-run", usage)
	command.Flags().Lookup("dry-run").NoOptDefVal = string(Client)
	_ = command.RegisterFlagCompletionFunc("dry-run", cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// Suffix marks a line about something that was not kept.
func (d *Strategy) Suffix() string {
	switch *d {
	case Client:
		return " (dry run)"
	case Server:
		return " (server dry run)"
	}
	return ""
}
