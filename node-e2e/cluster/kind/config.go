package kind

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// PoolLabel is the label of every worker, with the name of its pool.
const PoolLabel = "kubelet-guard.io/pool"

// DefaultPools are the workers of a cluster for which nobody chose others.
const DefaultPools = "stock=1,guarded=1:guarded,blue=2,green=1,red=1"

// Pool is a group of workers that are alike.
type Pool struct {
	// Name is the value of PoolLabel on the pool's nodes.
	Name string `json:"name"`
	// Nodes is how many there are, at least one.
	Nodes int `json:"nodes"`
	// Guarded nodes run the guarded kubelet in mode Enforce, all others the stock one.
	Guarded bool `json:"guarded,omitempty"`
}

// String is the pool as ParsePools reads it.
func (p Pool) String() string {
	s := fmt.Sprintf("%s=%d", p.Name, p.Nodes)
	if p.Guarded {
		s += ":guarded"
	}
	return s
}

// ParsePools reads a list such as "stock=1,guarded=1:guarded,blue=2": names with the
// number of nodes, and with :guarded for the guarded kubelet.
func ParsePools(s string) ([]Pool, error) {
	var pools []Pool
	for entry := range strings.SplitSeq(s, ",") {
		name, rest, found := strings.Cut(entry, "=")
		count, kubelet, chosen := strings.Cut(rest, ":")
		nodes, err := strconv.Atoi(count)
		switch {
		case !found || err != nil:
			return nil, fmt.Errorf("pool %q: must be name=nodes or name=nodes:guarded", entry)
		case chosen && kubelet != "guarded":
			return nil, fmt.Errorf("pool %q: after the colon may only be guarded", entry)
		}
		pools = append(pools, Pool{Name: name, Nodes: nodes, Guarded: chosen})
	}
	return pools, validatePools(pools)
}

func validatePools(pools []Pool) error {
	seen := map[string]bool{}
	for _, pool := range pools {
		if problems := validation.IsDNS1123Label(pool.Name); len(problems) > 0 {
			return fmt.Errorf("pool %q: name: %s", pool.Name, problems[0])
		}
		if pool.Nodes < 1 {
			return fmt.Errorf("pool %q: nodes: %d, must be at least 1", pool.Name, pool.Nodes)
		}
		if seen[pool.Name] {
			return fmt.Errorf("pool %q: listed twice", pool.Name)
		}
		seen[pool.Name] = true
	}
	return nil
}

// Config says what cluster to bring up.
type Config struct {
	// Name is the cluster's name, and the prefix of its nodes' names.
	Name string
	// Pools are the workers; there is always one control plane node, too. nil means
	// DefaultPools.
	Pools []Pool
	// Output is the folder with the built programs (_output). It receives kind/, with
	// the folder of the cluster in it.
	Output string
	// KubeVersion is the version of Kubernetes, such as v1.36.3, whose programs are in the
	// folder of that name. "" is that of the kubelets in bin.
	KubeVersion string
	// Log receives progress; nil discards it.
	Log io.Writer
}

// reservedNames are folders in _output/kind that belong to no cluster.
var reservedNames = []string{"bin", "engine", "images", "logs"}

// complete validates the configuration and fills in what may be absent.
func (c Config) complete() (Config, error) {
	if problems := validation.IsDNS1123Label(c.Name); len(problems) > 0 || len(c.Name) > 40 {
		return c, fmt.Errorf("name of the cluster %q: must be a DNS label of at most 40 characters", c.Name)
	}
	if slices.Contains(reservedNames, c.Name) || strings.HasPrefix(c.Name, rootPrefix) {
		return c, fmt.Errorf("name of the cluster %q: is the name of a folder in %s; choose another", c.Name, filepath.Join(c.Output, "kind"))
	}
	if c.Pools == nil {
		pools, err := ParsePools(DefaultPools)
		if err != nil {
			return c, err
		}
		c.Pools = pools
	}
	if err := validatePools(c.Pools); err != nil {
		return c, err
	}
	output, err := filepath.Abs(c.Output)
	if err != nil {
		return c, err
	}
	c.Output = output
	if c.Log == nil {
		c.Log = io.Discard
	}
	return c, nil
}
