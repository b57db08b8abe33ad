package factory

import (
	"context"
	"fmt"
	"io"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/pkg/dataprotection/check"
)

// statusTimeout is how long a member may take to report its state.
const statusTimeout = 5 * time.Second

// Members returns what each configured member reports of itself.
func (c *Connection) Members(ctx context.Context) ([]check.Member, error) {
	config, err := c.ClientConfig()
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("--etcd-servers: %w", err)
	}
	defer client.Close()
	var members []check.Member
	for _, endpoint := range config.Endpoints {
		statusCtx, cancel := context.WithTimeout(ctx, statusTimeout)
		status, err := client.Status(statusCtx, endpoint)
		cancel()
		m := check.Member{Endpoint: endpoint, Err: err}
		if err == nil {
			m.Version, m.Alarms = status.Version, status.Errors
		}
		members = append(members, m)
	}
	return members, nil
}

// PrintChecks prints checks, and returns an error if one is a problem.
func (o *Output) PrintChecks(out io.Writer, kind string, list check.List) error {
	var err error
	if !o.HumanReadable() {
		err = o.PrintObject(out, kind, struct {
			Checks check.List `json:"checks"`
		}{list})
	} else {
		var rows [][]any
		for _, c := range list {
			rows = append(rows, []any{string(c.Result), c.Name, c.Detail})
		}
		err = o.PrintTable(out, []Column{{Name: "Result"}, {Name: "Check"}, {Name: "Found"}}, rows)
		for _, c := range list {
			if c.Remedy != "" && c.Result != check.OK {
				fmt.Fprintf(out, "\n%s: %s: %s\n", c.Result, c.Name, c.Remedy)
			}
		}
	}
	if err == nil && list.Problems() > 0 {
		err = fmt.Errorf("problems: %d", list.Problems())
	}
	return err
}
