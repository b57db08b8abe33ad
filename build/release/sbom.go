package release

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// sbomTool makes the bill of materials of a binary: the modules that the go command has
// recorded in it, and its checksums.
type sbomTool func(ctx context.Context, b Binary, file string) ([]byte, error)

// cyclonedxGomod returns CycloneDX' tool. The name of the file is in the result.
func cyclonedxGomod(tool string) sbomTool {
	return func(ctx context.Context, b Binary, file string) ([]byte, error) {
		// Serial number and time would be others each time, and full package URLs have the
		// architecture of the machine that runs the tool.
		cmd := exec.CommandContext(ctx, tool, "bin", "-json", "-noserial", "-notimestamp", "-short-purls", "-std", "-version", b.Version, file)
		var problems strings.Builder
		cmd.Stderr = &problems
		data, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("cyclonedx-gomod for %s: %w: %s", b.Name(), err, problems.String())
		}
		return withoutToolHashes(data)
	}
}

// withoutToolHashes removes the checksums of the tool, which is another binary on another
// machine. Its version stays.
func withoutToolHashes(data []byte) ([]byte, error) {
	var made map[string]any
	if err := json.Unmarshal(data, &made); err != nil {
		return nil, err
	}
	metadata, _ := made["metadata"].(map[string]any)
	tools, _ := metadata["tools"].([]any)
	if len(tools) == 0 {
		return nil, errors.New("the bill of materials names no tool")
	}
	for _, tool := range tools {
		if fields, ok := tool.(map[string]any); ok {
			delete(fields, "hashes")
		}
	}
	return json.MarshalIndent(made, "", "  ")
}

// bom is the part of CycloneDX' format that is compared.
type bom struct {
	Format     string      `json:"bomFormat"`
	Metadata   bomMetadata `json:"metadata"`
	Components []component `json:"components"`
}

type bomMetadata struct {
	Component  component  `json:"component"`
	Properties []property `json:"properties"`
}

type component struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// hashProperty is where CycloneDX' tool puts the checksum of the binary.
const hashProperty = "cdx:gomod:binary:hash:SHA-256"

// checkSBOM compares a bill of materials with the binary: its checksum, and each of its modules.
func checkSBOM(dir string, b Binary, f foundBinary) error {
	data, err := os.ReadFile(filepath.Join(dir, b.sbomFile()))
	if err != nil {
		return err
	}
	var got bom
	if err := json.Unmarshal(data, &got); err != nil {
		return fmt.Errorf("%s: %w", b.sbomFile(), err)
	}
	info, err := buildinfo.ReadFile(f.file)
	if err != nil {
		return fmt.Errorf("%s: not a binary of Go: %w", f.where, err)
	}
	sum := ""
	for _, p := range got.Metadata.Properties {
		if p.Name == hashProperty {
			sum = p.Value
		}
	}
	main := component{info.Main.Path, b.Version}
	switch {
	case got.Format != "CycloneDX":
		return fmt.Errorf("%s: not a bill of materials of CycloneDX", b.sbomFile())
	case sum != f.sha256:
		return fmt.Errorf("%s: it is of a binary with SHA-256 %s, and %s has %s", b.sbomFile(), sum, f.where, f.sha256)
	case got.Metadata.Component != main:
		return fmt.Errorf("%s: it is of %v, and should be of %v", b.sbomFile(), got.Metadata.Component, main)
	}
	listed := map[component]bool{}
	for _, c := range got.Components {
		listed[c] = true
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component{m.Path, m.Version}
		if !listed[c] {
			return fmt.Errorf("%s: module %s %s of the binary is missing", b.sbomFile(), c.Name, c.Version)
		}
		delete(listed, c)
	}
	delete(listed, component{"std", info.GoVersion})
	for c := range listed {
		return fmt.Errorf("%s: module %s %s is not in the binary", b.sbomFile(), c.Name, c.Version)
	}
	return nil
}
