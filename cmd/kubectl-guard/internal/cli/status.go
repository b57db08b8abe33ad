package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// nodeStatus is one item of kubectl guard status.
type nodeStatus struct {
	Node  string      `json:"node"`
	State nodes.State `json:"state"`
	// Detail says why a node has no further figures.
	Detail string `json:"detail,omitempty"`
	// Version of the kubelet.
	Version string     `json:"version"`
	Mode    guard.Mode `json:"mode,omitempty"`
	// Figures are nil unless the node is guarded and answered. Protected includes
	// Held, but not Terminating.
	Protected   *int64 `json:"protected,omitempty"`
	Held        *int64 `json:"held,omitempty"`
	Terminating *int64 `json:"terminating,omitempty"`
	// HeldByCause counts holds; a pod may be held for several causes.
	HeldByCause map[string]int64 `json:"heldByCause,omitempty"`
	OldestHold  *metav1.Time     `json:"oldestHold,omitempty"`
}

type nodeStatusList struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Items      []nodeStatus `json:"items"`
	// WithoutBudget is nil when nodes were named, or when it is not known.
	WithoutBudget *withoutBudget `json:"withoutBudget,omitempty"`
}

type statusOptions struct {
	*settings
	output *output
	nodes  []string
}

func newStatusCommand(s *settings) *cobra.Command {
	o := &statusOptions{settings: s, output: newOutput(outputTable, outputWide)}
	command := &cobra.Command{
		Use:   "status [NODE...]",
		Short: "Show which nodes are guarded, and how many pods they protect and hold",
		Long: `Show which nodes are guarded, and how many pods they protect and hold. Without
names of nodes, a line says how many protected pods no PodDisruptionBudget selects.

STATE is Guarded, Unguarded (the kubelet has no guard), NoAnswer (nothing usable
came within --node-timeout), or Forbidden (you may not get nodes/proxy).`,
		Example: `  kubectl guard status
  kubectl guard status worker-3 -o wide`,
		ValidArgsFunction: completeNodes(s),
		RunE: func(command *cobra.Command, arguments []string) error {
			o.nodes = arguments
			return o.run(command.Context())
		},
	}
	o.output.addFlags(command)
	return command
}

func (o *statusOptions) run(ctx context.Context) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	answers, err := c.nodes.Query(ctx, o.nodes...)
	if err != nil {
		return err
	}
	list := nodeStatusList{APIVersion: outputVersion, Kind: "NodeStatusList", Items: []nodeStatus{}}
	for _, answer := range answers {
		list.Items = append(list.Items, statusOf(answer))
	}
	if len(o.nodes) == 0 && len(list.Items) > 0 {
		if list.WithoutBudget, err = countWithoutBudget(ctx, c.kube); err != nil {
			o.warn("protected pods without a PodDisruptionBudget are not counted: %v", err)
		}
	}
	if err := o.show(&list); err != nil {
		return err
	}
	return unanswered(list.Items)
}

// unanswered is the error when no node said anything, so that nothing is known.
func unanswered(items []nodeStatus) error {
	states := map[nodes.State]int{}
	for _, item := range items {
		states[item.State]++
	}
	if silent := states[nodes.NoAnswer] + states[nodes.Forbidden]; silent == 0 || silent < len(items) {
		return nil
	}
	if states[nodes.NoAnswer] == 0 {
		return errors.New("no node may be asked: that needs get on nodes/proxy, which the role kubelet-guard-viewer has")
	}
	return errors.New("no node answered; -o wide shows why")
}

func (o *statusOptions) show(list *nodeStatusList) error {
	if !o.output.forPeople() {
		return o.output.object(o.Out, list)
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(o.ErrOut, "The cluster has no nodes.")
		return nil
	}
	if err := o.table(list.Items); err != nil {
		return err
	}
	if w := list.WithoutBudget; w != nil && w.sentence() != "" {
		fmt.Fprintln(o.Out)
		wrap(o.Out, "", w.sentence())
	}
	return nil
}

func statusOf(answer nodes.Answer) nodeStatus {
	status := nodeStatus{
		Node: answer.Node.Name, State: answer.State, Detail: answer.Detail,
		Version: answer.Node.Status.NodeInfo.KubeletVersion,
	}
	if answer.Pods == nil {
		return status
	}
	// The kubelet itself is newer than what it last wrote to the API.
	status.Version, status.Mode = answer.Pods.Version, answer.Pods.Mode
	var protected, held, terminating int64
	var oldest time.Time
	for _, pod := range answer.Pods.Items {
		switch pod.State {
		case guard.Terminating:
			terminating++
		case guard.Held:
			held++
			protected++
		default:
			protected++
		}
		for _, hold := range pod.Holds {
			if status.HeldByCause == nil {
				status.HeldByCause = map[string]int64{}
			}
			status.HeldByCause[string(hold.Cause)]++
			if oldest.IsZero() || hold.Since.Before(oldest) {
				oldest = hold.Since
			}
		}
	}
	status.Protected, status.Held, status.Terminating = &protected, &held, &terminating
	if !oldest.IsZero() {
		status.OldestHold = &metav1.Time{Time: oldest}
	}
	return status
}

func (o *statusOptions) table(items []nodeStatus) error {
	columns := []column{
		{name: "Node"}, {name: "State"}, {name: "Version"}, {name: "Mode"},
		{name: "Protected"}, {name: "Held"}, {name: "Oldest"},
		{name: "Ending", wide: true}, {name: "Causes", wide: true}, {name: "Detail", wide: true},
	}
	var rows [][]any
	for _, item := range items {
		row := []any{item.Node, string(item.State), item.Version, none, none, none, none, none, none, item.Detail}
		if item.State == nodes.Guarded {
			row[3], row[4], row[5] = string(item.Mode), *item.Protected, *item.Held
			if item.OldestHold != nil {
				row[6] = age(o.now(), item.OldestHold.Time)
			}
			row[7], row[8] = *item.Terminating, causeCounts(item.HeldByCause)
		}
		rows = append(rows, row)
	}
	return table(o.Out, o.output.wide(), columns, rows)
}

// causeCounts is "Evicted=2,PodVanished=1", in the order of the causes.
func causeCounts(counts map[string]int64) string {
	text := ""
	for _, cause := range guard.Causes() {
		if n := counts[string(cause)]; n > 0 {
			if text != "" {
				text += ","
			}
			text += fmt.Sprintf("%s=%d", cause, n)
		}
	}
	if text == "" {
		return none
	}
	return text
}
