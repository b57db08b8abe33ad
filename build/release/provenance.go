package release

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"kubelet-guard.io/build"
)

const (
	provenanceType = "https://slsa.dev/provenance/v1"
	// buildType names what make release does, and the meaning of the parameters.
	buildType  = "https://kubelet-guard.io/build/release/v1"
	repository = "https://kubelet-guard.io"
)

// builder is who made the folder, and with what.
type builder struct {
	// id is the address of the builder. The signer of the statement vouches for it.
	id string
	// upstreams are the pinned sources of the kubelets.
	upstreams []build.Upstream
}

// writeProvenance writes the in-toto statement with SLSA's predicate: the checksums of all other
// files, and what they were made from. It is not signed.
func (r Release) writeProvenance(dir string, files []string, by builder) error {
	sums, err := checksumsOf(dir, files)
	if err != nil {
		return err
	}
	s := &intoto.Statement{Type: intoto.StatementTypeUri, PredicateType: provenanceType}
	for _, name := range sortedKeys(sums) {
		s.Subject = append(s.Subject, &intoto.ResourceDescriptor{
			Name: name, Digest: map[string]string{intoto.AlgorithmSHA256.String(): sums[name]},
		})
	}
	p, err := r.provenance(by)
	if err != nil {
		return err
	}
	if s.Predicate, err = toStruct(p); err != nil {
		return err
	}
	if err := errors.Join(s.Validate(), p.Validate()); err != nil {
		return err
	}
	data, err := protojson.Marshal(s)
	if err != nil {
		return err
	}
	// protojson varies its spaces on purpose.
	var text bytes.Buffer
	if err := json.Indent(&text, data, "", "  "); err != nil {
		return err
	}
	text.WriteByte('\n')
	return os.WriteFile(filepath.Join(dir, provenanceFile), text.Bytes(), 0o644)
}

func (r Release) provenance(by builder) (*provenancev1.Provenance, error) {
	var kubeVersions []any
	for _, kube := range r.KubeVersions {
		kubeVersions = append(kubeVersions, kube)
	}
	external, err := structpb.NewStruct(map[string]any{
		"release": r.Version, "kubernetesVersions": kubeVersions, "registry": r.Registry, "url": r.URL,
	})
	if err != nil {
		return nil, err
	}
	internal, err := structpb.NewStruct(map[string]any{
		"goVersion": r.GoVersion, "sourceDateEpoch": fmt.Sprint(r.Time.Unix()),
	})
	if err != nil {
		return nil, err
	}
	dependencies := []*intoto.ResourceDescriptor{{
		Uri:    "git+" + repository,
		Digest: map[string]string{intoto.AlgorithmGitCommit.String(): r.Commit},
	}}
	for _, u := range by.upstreams {
		// go.sum has the hash in base64, a statement in hexadecimal.
		hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(u.Sum, "h1:"))
		if err != nil {
			return nil, fmt.Errorf("sum of %s %s: %w", u.Module, u.Version, err)
		}
		dependencies = append(dependencies, &intoto.ResourceDescriptor{
			Uri:    "pkg:golang/" + u.Module + "@" + u.Version,
			Digest: map[string]string{intoto.AlgorithmDirHash.String(): hex.EncodeToString(hash)},
		})
	}
	return &provenancev1.Provenance{
		BuildDefinition: &provenancev1.BuildDefinition{
			BuildType: buildType, ExternalParameters: external, InternalParameters: internal, ResolvedDependencies: dependencies,
		},
		RunDetails: &provenancev1.RunDetails{Builder: &provenancev1.Builder{Id: by.id}},
	}, nil
}

// toStruct turns a message into the form that a statement has its predicate in.
func toStruct(m proto.Message) (*structpb.Struct, error) {
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	return s, protojson.Unmarshal(data, s)
}

// readProvenance returns the release that a statement describes, and the checksums of its
// subjects.
func readProvenance(dir string) (Release, map[string]string, error) {
	r, subjects, err := parseProvenance(filepath.Join(dir, provenanceFile))
	if err != nil {
		err = fmt.Errorf("%s: %w", provenanceFile, err)
	}
	return r, subjects, err
}

func parseProvenance(file string) (Release, map[string]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Release{}, nil, err
	}
	s, p := &intoto.Statement{}, &provenancev1.Provenance{}
	if err := protojson.Unmarshal(data, s); err != nil {
		return Release{}, nil, err
	}
	if err := s.Validate(); err != nil {
		return Release{}, nil, err
	}
	if s.PredicateType != provenanceType {
		return Release{}, nil, fmt.Errorf("the predicate is of type %s, and should be of %s", s.PredicateType, provenanceType)
	}
	predicate, err := protojson.Marshal(s.Predicate)
	if err != nil {
		return Release{}, nil, err
	}
	if err := protojson.Unmarshal(predicate, p); err != nil {
		return Release{}, nil, err
	}
	if err := p.Validate(); err != nil {
		return Release{}, nil, err
	}
	if p.BuildDefinition.BuildType != buildType {
		return Release{}, nil, fmt.Errorf("the build is of type %s, and should be of %s", p.BuildDefinition.BuildType, buildType)
	}
	r := Release{}
	external := p.BuildDefinition.ExternalParameters.AsMap()
	r.Version, _ = external["release"].(string)
	r.Registry, _ = external["registry"].(string)
	r.URL, _ = external["url"].(string)
	list, _ := external["kubernetesVersions"].([]any)
	for _, v := range list {
		kube, _ := v.(string)
		r.KubeVersions = append(r.KubeVersions, kube)
	}
	internal := p.BuildDefinition.InternalParameters.AsMap()
	r.GoVersion, _ = internal["goVersion"].(string)
	epoch, _ := internal["sourceDateEpoch"].(string)
	var seconds int64
	if _, err := fmt.Sscan(epoch, &seconds); err != nil {
		return Release{}, nil, fmt.Errorf("sourceDateEpoch %q: %w", epoch, err)
	}
	r.Time = time.Unix(seconds, 0).UTC()
	var kubelets []string
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		if commit := d.Digest[intoto.AlgorithmGitCommit.String()]; commit != "" {
			r.Commit = commit
			continue
		}
		kubelets = append(kubelets, d.Uri[strings.LastIndex(d.Uri, "@")+1:])
	}
	if !slices.Equal(kubelets, r.KubeVersions) {
		return Release{}, nil, fmt.Errorf("the sources of kubelets are of %v, and should be of %v", kubelets, r.KubeVersions)
	}
	subjects := map[string]string{}
	for _, subject := range s.Subject {
		subjects[subject.Name] = subject.Digest[intoto.AlgorithmSHA256.String()]
	}
	return r, subjects, r.validate()
}

// checkSubjects compares the subjects of the statement with the files.
func checkSubjects(subjects, sums map[string]string) error {
	var problems []error
	for _, name := range sortedKeys(sums) {
		if name == provenanceFile {
			continue
		}
		switch subject, there := subjects[name]; {
		case !there:
			problems = append(problems, fmt.Errorf("%s: no subject for %s", provenanceFile, name))
		case subject != sums[name]:
			problems = append(problems, fmt.Errorf("%s: the subject %s has SHA-256 %s, the file %s", provenanceFile, name, subject, sums[name]))
		}
	}
	for _, name := range sortedKeys(subjects) {
		if _, there := sums[name]; !there {
			problems = append(problems, fmt.Errorf("%s: the subject %s is not a file", provenanceFile, name))
		}
	}
	return errors.Join(problems...)
}
