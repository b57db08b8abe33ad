package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

// Config is the part of a kubelet's configuration that a roll-out reads. A field that is not
// set is empty: its default is the kubelet's.
type Config struct {
	ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint"`
	TLSCertFile              string `json:"tlsCertFile"`
	// EvictionHard and EvictionSoft have a threshold for each signal, such as 10% or 1Gi
	// for nodefs.available.
	EvictionHard map[string]string `json:"evictionHard"`
	EvictionSoft map[string]string `json:"evictionSoft"`
}

// ConfigOf returns the configuration of a process of the kubelet as its flags and files
// set it, in the kubelet's order: the file of --config, then the drop-ins in the folder of
// --config-dir by their paths, then the flags. The error names the file.
func ConfigOf(root host.Root, process host.Process) (Config, error) {
	var config Config
	read := func(name string) error {
		data, err := root.Read(name)
		if err != nil {
			return fmt.Errorf("the configuration of the kubelet: %w", err)
		}
		if err := yaml.Unmarshal(data, &config); err != nil {
			return fmt.Errorf("the configuration of the kubelet, %s: %w", name, err)
		}
		return nil
	}
	if name, _ := process.Flag("--config"); name != "" {
		if err := read(name); err != nil {
			return Config{}, err
		}
	}
	if dir, _ := process.Flag("--config-dir"); dir != "" {
		where := root.Path(dir)
		if err := filepath.WalkDir(where, func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				return fmt.Errorf("the drop-ins of the kubelet's configuration in %s: %w", dir, err)
			}
			if entry.IsDir() || filepath.Ext(file) != ".conf" {
				return nil
			}
			return read(path.Join(dir, strings.TrimPrefix(file, where)))
		}); err != nil {
			return Config{}, err
		}
	}
	if value, _ := process.Flag("--container-runtime-endpoint"); value != "" {
		config.ContainerRuntimeEndpoint = value
	}
	if value, _ := process.Flag("--tls-cert-file"); value != "" {
		config.TLSCertFile = value
	}
	for flag, thresholds := range map[string]*map[string]string{"--eviction-hard": &config.EvictionHard, "--eviction-soft": &config.EvictionSoft} {
		if value, ok := process.Flag(flag); ok {
			*thresholds = parseThresholds(value)
		}
	}
	return config, nil
}

// parseThresholds reads a flag such as memory.available<100Mi,nodefs.available<10%.
func parseThresholds(text string) map[string]string {
	thresholds := map[string]string{}
	for threshold := range strings.SplitSeq(text, ",") {
		if signal, value, ok := strings.Cut(threshold, "<"); ok {
			thresholds[strings.TrimSpace(signal)] = strings.TrimSpace(value)
		}
	}
	return thresholds
}

// Config returns the configuration that the kubelet runs with, defaults included.
func (c *Client) Config(ctx context.Context) (Config, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, _ := c.client()
	data, err := c.get(ctx, client, "/configz")
	if err != nil {
		return Config{}, err
	}
	var answer struct {
		KubeletConfig *Config `json:"kubeletconfig"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return Config{}, fmt.Errorf("GET /configz of the kubelet: %w", err)
	}
	if answer.KubeletConfig == nil {
		return Config{}, fmt.Errorf("GET /configz of the kubelet: no kubeletconfig in %.100q", data)
	}
	return *answer.KubeletConfig, nil
}
