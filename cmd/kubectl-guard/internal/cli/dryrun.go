package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

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

// confirm asks a question on stdout and returns nil when the answer is yes.
func (s *settings) confirm(ctx context.Context, question string) error {
	yes, err := s.ask(ctx, question)
	if err != nil || yes {
		return err
	}
	return errors.New("not confirmed, nothing was done; answer y, or give --yes")
}

// errInterrupted is the answer of somebody who ends the command at a question.
var errInterrupted = errors.New("interrupted")

// ask asks a question on stdout and reports whether the answer is yes. It returns
// errInterrupted when the context ends first; no question may follow then.
func (s *settings) ask(ctx context.Context, question string) (bool, error) {
	if s.answers == nil {
		// One for all questions: it reads ahead.
		s.answers = bufio.NewReader(s.In)
	}
	fmt.Fprintf(s.Out, "%s [y/N] ", question)
	type line struct {
		text string
		err  error
	}
	lines := make(chan line, 1)
	go func() {
		text, err := s.answers.ReadString('\n')
		lines <- line{text, err}
	}()
	var answer line
	select {
	case answer = <-lines:
	case <-ctx.Done():
		fmt.Fprintln(s.Out)
		return false, errInterrupted
	}
	if answer.err != nil && !errors.Is(answer.err, io.EOF) {
		return false, fmt.Errorf("read the answer: %w", answer.err)
	}
	switch strings.ToLower(strings.TrimSpace(answer.text)) {
	case "y", "yes":
		return true, nil
	case "":
		fmt.Fprintln(s.Out)
	}
	return false, nil
}
