// Package factory has what each verb gets: the connection, streams and output, and the steps
// that all verbs have.
package factory

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/yaml"
)

// APIVersion is the apiVersion of what -o json and yaml print. These kinds exist in the output
// only.
const APIVersion = "cli.kubelet-guard.io/v1alpha1"

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

// Verb is a verb in the three steps of kubectl's own commands.
type Verb interface {
	// Complete takes over the arguments.
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

// Output is the flag -o.
type Output struct{ format string }

// The formats: a table for humans, with more columns or not, and two for programs.
var formats = []string{"table", "wide", "json", "yaml"}

// AddFlags adds the flag to a command.
func (o *Output) AddFlags(command *cobra.Command) {
	command.Flags().StringVarP(&o.format, "output", "o", "table", "Output format: "+strings.Join(formats, ", "))
	_ = command.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// Validate refuses an unknown format.
func (o *Output) Validate() error {
	if !slices.Contains(formats, o.format) {
		return fmt.Errorf("--output: unknown format %q; known are %s", o.format, strings.Join(formats, ", "))
	}
	return nil
}

// HumanReadable reports whether the format is one for humans.
func (o *Output) HumanReadable() bool { return o.format == "table" || o.format == "wide" }

// Wide reports whether the format is wide.
func (o *Output) Wide() bool { return o.format == "wide" }

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
	content["apiVersion"], content["kind"] = APIVersion, kind
	if encoded, err = json.MarshalIndent(content, "", "    "); err != nil {
		return err
	}
	if o.format == "yaml" {
		if encoded, err = yaml.JSONToYAML(encoded); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(out, strings.TrimSuffix(string(encoded), "\n"))
	return err
}

// Column of a table; wide ones are shown with -o wide only.
type Column struct {
	Name string
	Wide bool
}

// PrintTable prints rows as kubectl get does.
func (o *Output) PrintTable(out io.Writer, columns []Column, rows [][]any) error {
	t := &metav1.Table{}
	for _, c := range columns {
		definition := metav1.TableColumnDefinition{Name: c.Name, Type: "string"}
		if c.Wide {
			definition.Priority = 1
		}
		t.ColumnDefinitions = append(t.ColumnDefinitions, definition)
	}
	for _, cells := range rows {
		t.Rows = append(t.Rows, metav1.TableRow{Cells: cells})
	}
	return printers.NewTablePrinter(printers.PrintOptions{Wide: o.format == "wide"}).PrintObj(t, out)
}
