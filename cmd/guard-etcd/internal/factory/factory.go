// Package factory has what each verb gets: the connection, streams and output, and the steps
// that all verbs have.
package factory

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"kubelet-guard.io/cmd/internal/printer"
)

// Factory has what all verbs share.
type Factory struct {
	genericiooptions.IOStreams
	Connection *Connection
	Now        func() time.Time
}

// New returns a factory for one command.
func New(streams genericiooptions.IOStreams) *Factory {
	return &Factory{IOStreams: streams, Connection: &Connection{}, Now: time.Now}
}

// Warn prints a warning.
func (f *Factory) Warn(format string, arguments ...any) {
	fmt.Fprintf(f.ErrOut, "Warning: "+format+"\n", arguments...)
}

// Output is the flag -o.
type Output struct{ *printer.Output }

// AddFlags adds the flag to a command.
func (o *Output) AddFlags(command *cobra.Command) {
	o.Output = printer.New(printer.FormatTable, printer.FormatWide)
	o.Output.AddFlags(command)
}

// PrintObject prints a value for programs, with its kind.
func (o *Output) PrintObject(out io.Writer, kind string, value any) error {
	encoded, err := json.Marshal(value)
	if err != nil {
		return err
	}
	content := map[string]any{}
	if err := json.Unmarshal(encoded, &content); err != nil {
		return err
	}
	content["apiVersion"], content["kind"] = printer.APIVersion, kind
	return o.Output.PrintObject(out, content)
}

// Column of a table; wide ones are shown with -o wide only.
type Column = printer.Column

// PrintTable prints rows as kubectl get does.
func (o *Output) PrintTable(out io.Writer, columns []Column, rows [][]any) error {
	return printer.PrintTable(out, o.Wide(), columns, rows)
}
