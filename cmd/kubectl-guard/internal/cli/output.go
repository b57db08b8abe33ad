package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
)

// outputVersion is the apiVersion of what -o json and yaml print. These kinds
// exist in the output only.
const outputVersion = "cli.kubelet-guard.io/v1alpha1"

const (
	outputTable = "table"
	outputWide  = "wide"
)

// output is the flag -o and what it leads to.
type output struct {
	flags *genericclioptions.PrintFlags
	// human formats, besides those of the flags.
	human []string
}

func newOutput(human ...string) *output {
	flags := genericclioptions.NewPrintFlags("")
	flags.NamePrintFlags = nil
	return &output{flags: flags, human: human}
}

func (o *output) addFlags(command *cobra.Command) {
	o.flags.AddFlags(command)
	formats := o.formats()
	command.Flags().Lookup("output").Usage = "Output format: " + strings.Join(formats, ", ")
	// Nothing that is printed here has managed fields.
	_ = command.Flags().MarkHidden("show-managed-fields")
	_ = command.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

func (o *output) formats() []string {
	return append(append([]string(nil), o.human...), o.flags.AllowedFormats()...)
}

// forPeople reports whether a person is to read the output.
func (o *output) forPeople() bool {
	format := *o.flags.OutputFormat
	if format == "" {
		return true
	}
	for _, human := range o.human {
		if format == human {
			return true
		}
	}
	return false
}

func (o *output) wide() bool { return *o.flags.OutputFormat == outputWide }

// check returns an error for an unknown format, before anything is done.
func (o *output) check() error {
	if o.forPeople() {
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

// object prints a value with JSON tags, apiVersion and kind included.
func (o *output) object(out io.Writer, value any) error {
	printer, err := o.flags.ToPrinter()
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	// By way of JSON, so that times and nested types come out as their tags say.
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

// column of a table; wide ones are shown with -o wide only.
type column struct {
	name string
	wide bool
}

// table prints rows as kubectl get does.
func table(out io.Writer, wide bool, columns []column, rows [][]any) error {
	t := &metav1.Table{}
	for _, c := range columns {
		definition := metav1.TableColumnDefinition{Name: c.name, Type: "string"}
		if c.wide {
			definition.Priority = 1
		}
		t.ColumnDefinitions = append(t.ColumnDefinitions, definition)
	}
	for _, cells := range rows {
		t.Rows = append(t.Rows, metav1.TableRow{Cells: cells})
	}
	return printers.NewTablePrinter(printers.PrintOptions{Wide: wide}).PrintObj(t, out)
}

const none = "<none>"

// age is how long ago t was, as kubectl shows ages.
func age(now, t time.Time) string {
	if t.IsZero() {
		return none
	}
	return duration.HumanDuration(now.Sub(t))
}

// seconds of a duration for people: tenths below a minute.
func seconds(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// count is "1 pod", "2 pods".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
