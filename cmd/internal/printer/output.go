// Package printer prints results: the flag --output, tables, ages, and messages about many nodes.
package printer

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
)

// APIVersion is the apiVersion of what -o json and yaml print. These kinds
// exist in the output only.
const APIVersion = "cli.kubelet-guard.io/v1alpha1"

// List is what -o json and yaml print of a verb that shows several items.
type List[T any] struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Items      []T    `json:"items"`
}

// NewList returns an empty list of the kind.
func NewList[T any](kind string) List[T] {
	return List[T]{APIVersion: APIVersion, Kind: kind, Items: []T{}}
}

const (
	FormatTable = "table"
	FormatWide  = "wide"
)

// Output is the flag -o and what it leads to.
type Output struct {
	flags *genericclioptions.PrintFlags
	// humanReadable formats, besides those of the flags.
	humanReadable []string
}

// New returns the flag --output with those formats for humans, besides the machine-readable ones.
func New(human ...string) *Output {
	flags := genericclioptions.NewPrintFlags("")
	flags.NamePrintFlags = nil
	return &Output{flags: flags, humanReadable: human}
}

// AddFlags adds the flag to a command.
func (o *Output) AddFlags(command *cobra.Command) {
	o.flags.AddFlags(command)
	formats := o.formats()
	command.Flags().Lookup("output").Usage = "Output format: " + strings.Join(formats, ", ")
	// Nothing that is printed here has managed fields.
	_ = command.Flags().MarkHidden("show-managed-fields")
	_ = command.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

func (o *Output) formats() []string {
	return slices.Concat(o.humanReadable, o.flags.AllowedFormats())
}

// HumanReadable reports whether the format is one for humans.
func (o *Output) HumanReadable() bool {
	format := *o.flags.OutputFormat
	return format == "" || slices.Contains(o.humanReadable, format)
}

// Wide reports whether the format is wide.
func (o *Output) Wide() bool { return *o.flags.OutputFormat == FormatWide }

// Validate returns an error for an unknown format, before anything is done.
func (o *Output) Validate() error {
	if o.HumanReadable() {
		return nil
	}
	if _, err := o.flags.ToPrinter(); err != nil {
		if genericclioptions.IsNoCompatiblePrinterError(err) {
			return fmt.Errorf("--output: unknown format %q; known are %s", *o.flags.OutputFormat, strings.Join(o.formats(), ", "))
		}
		return fmt.Errorf("--output: %w", err)
	}
	return nil
}

// PrintObject prints a value with JSON tags, apiVersion and kind included.
func (o *Output) PrintObject(out io.Writer, value any) error {
	printer, err := o.flags.ToPrinter()
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	// By way of JSON, so that times and nested types come out by their tags.
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("convert the output: %w", err)
	}
	content := map[string]any{}
	if err := json.Unmarshal(encoded, &content); err != nil {
		return fmt.Errorf("convert the output: %w", err)
	}
	return printer.PrintObj(&unstructured.Unstructured{Object: content}, out)
}

// PrintList prints objects as a list that is ready for kubectl apply.
func PrintList[T any](o *Output, out io.Writer, items []T) error {
	return o.PrintObject(out, List[T]{APIVersion: "v1", Kind: "List", Items: items})
}

// Column of a table; wide ones are shown with -o wide only.
type Column struct {
	Name string
	Wide bool
}

// PrintTable prints rows as kubectl get does.
func PrintTable(out io.Writer, wide bool, columns []Column, rows [][]any) error {
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
	return printers.NewTablePrinter(printers.PrintOptions{Wide: wide}).PrintObj(t, out)
}
