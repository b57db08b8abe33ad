package rollout

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// Target is what a node should run. The zero value is invalid.
type Target string

const (
	// Observe changes nothing. The node reports what it runs, what the image offers,
	// and whether it could be installed.
	Observe Target = "Observe"
	// Audit is the guarded kubelet in mode Audit.
	Audit Target = "Audit"
	// Enforce is the guarded kubelet in mode Enforce.
	Enforce Target = "Enforce"
	// Stock is the kubelet that the node had before the first roll-out.
	Stock Target = "Stock"
)

// Targets returns all targets, in the documented order.
func Targets() []Target { return []Target{Observe, Audit, Enforce, Stock} }

// Guarded reports whether the target runs the guarded kubelet.
func (t Target) Guarded() bool { return t == Audit || t == Enforce }

// Mode returns the mode of the guard, and Off for a target without guard.
func (t Target) Mode() guard.Mode {
	switch t {
	case Audit:
		return guard.Audit
	case Enforce:
		return guard.Enforce
	default:
		return guard.Off
	}
}

const (
	// DefaultVerifyTimeout is how long a node may take from the restart of its kubelet
	// until everything is healthy and has stayed so for DefaultSettle.
	DefaultVerifyTimeout = 60 * time.Second
	// DefaultSettle is how long everything has to stay healthy. A kubelet that was
	// started with a wrong configuration kills pods after 2 seconds, and evicts them
	// after 10.
	DefaultSettle = 15 * time.Second
	// timeToStart is what is left of VerifyTimeout for a kubelet to get healthy. One that
	// has no time left to settle is rolled back at once, so a long settle time does not
	// leave a node longer without a kubelet.
	timeToStart = DefaultVerifyTimeout - DefaultSettle
	// MaxSettle bounds Settle.
	MaxSettle = MaxVerifyTimeout - timeToStart
	// MaxVerifyTimeout bounds VerifyTimeout: pods are without a kubelet meanwhile.
	MaxVerifyTimeout = 5 * time.Minute
	// MaxReleased bounds ReleaseHeldUIDs: the request is handed to a process as one
	// variable of its environment, which has at most 128 KiB.
	MaxReleased = 1000
)

// Request is what the nodes of a pool are asked to run.
type Request struct {
	Target Target `json:"target"`
	// Image has the installer and the guarded kubelet.
	Image string `json:"image"`
	// ImageName is the name with a tag that Image was resolved from, when it is a name with
	// a digest. It is for people: nothing is pulled by it.
	ImageName string `json:"imageName,omitempty"`
	// KubeletVersion, when set, is the version that the image's kubelet must have, such
	// as v1.36.3+guard.0.1.0.
	KubeletVersion string `json:"kubeletVersion,omitempty"`
	// KubeletChecksums, when set, has the SHA-256 checksum (64 lower case hexadecimal
	// digits) that the image's kubelet must have, for each architecture as Go names
	// it. It ties a request to what the nodes reported when they observed: a tag may
	// be moved in between.
	KubeletChecksums map[string]string `json:"kubeletChecksums,omitempty"`
	// Configuration is a GuardConfiguration in YAML. Empty means the defaults. It may
	// leave mode out, which is set from Target; another mode than the target's is an
	// error.
	Configuration string `json:"configuration,omitempty"`
	// ReleaseHeldUIDs are the held pods that may stop: from Enforce to Audit or Stock, what
	// the guard holds stops. They are the pods that someone was shown and said yes to, at
	// most MaxReleased. A node that holds any other pod refuses.
	ReleaseHeldUIDs []types.UID `json:"releaseHeldUIDs,omitempty"`
	// ReleaseHeld was the yes of earlier releases to whatever a node holds when its turn
	// comes. It is not valid any more, and read so that an error can say so.
	ReleaseHeld bool `json:"releaseHeld,omitempty"`
	// Attempt distinguishes requests that are the same otherwise, so that an earlier report
	// does not count for a later inspection.
	Attempt string `json:"attempt,omitempty"`
	// StockVersion is the yes to a stock kubelet of this version, such as v1.38.0, although
	// it does not fit: it is newer than the API server, or too many minor versions away.
	StockVersion string `json:"stockVersion,omitempty"`
	// VerifyTimeout is DefaultVerifyTimeout when zero, or more for a longer Settle.
	VerifyTimeout metav1.Duration `json:"verifyTimeout,omitzero"`
	// Settle is how long the kubelet has to stay healthy before a node counts as done,
	// DefaultSettle when zero.
	Settle metav1.Duration `json:"settle,omitzero"`
}

// ID is the same for equal requests, and appears in reports.
func (r Request) ID() string {
	data, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("a request of plain fields: %v", err)) // cannot happen
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6])
}

// Verify returns VerifyTimeout or its default, which leaves the time to start that
// DefaultVerifyTimeout and DefaultSettle leave.
func (r Request) Verify() time.Duration {
	if r.VerifyTimeout.Duration > 0 {
		return r.VerifyTimeout.Duration
	}
	return max(DefaultVerifyTimeout, r.SettleTime()+timeToStart)
}

// SettleTime returns Settle or its default.
func (r Request) SettleTime() time.Duration {
	if r.Settle.Duration > 0 {
		return r.Settle.Duration
	}
	return DefaultSettle
}

var (
	checksumPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	versionPattern  = regexp.MustCompile(`^v\d+\.\d+\.\d+[-+.0-9A-Za-z]*$`)
	archPattern     = regexp.MustCompile(`^[a-z0-9]+$`)
)

// Validate returns an error that names every field that is wrong.
func (r Request) Validate() error {
	var errs field.ErrorList
	switch r.Target {
	case Observe, Audit, Enforce, Stock:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("target"), r.Target, Targets()))
	}
	if r.Image == "" {
		errs = append(errs, field.Required(field.NewPath("image"), "name the image with the installer and the kubelet"))
	} else if strings.ContainsAny(r.Image, " \t\n") {
		errs = append(errs, field.Invalid(field.NewPath("image"), r.Image, "a name of an image has no spaces"))
	}
	for arch, sum := range r.KubeletChecksums {
		path := field.NewPath("kubeletChecksums").Key(arch)
		if !archPattern.MatchString(arch) {
			errs = append(errs, field.Invalid(path, arch, "must be an architecture such as amd64"))
		}
		if !checksumPattern.MatchString(sum) {
			errs = append(errs, field.Invalid(path, sum, "must be a SHA-256 checksum of 64 lower case hexadecimal digits"))
		}
	}
	if r.ReleaseHeld {
		errs = append(errs, field.Forbidden(field.NewPath("releaseHeld"),
			"it would stop every pod that is held when a node's turn comes, also those that nobody was shown: name the pods in releaseHeldUIDs, as kubectl guard rollout start, undo and uninstall do"))
	}
	if len(r.ReleaseHeldUIDs) > MaxReleased {
		errs = append(errs, field.TooMany(field.NewPath("releaseHeldUIDs"), len(r.ReleaseHeldUIDs), MaxReleased))
	}
	if slices.Contains(r.ReleaseHeldUIDs, "") {
		errs = append(errs, field.Invalid(field.NewPath("releaseHeldUIDs"), "", "must be UIDs of pods"))
	}
	if _, err := r.GuardConfiguration(); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("configuration"), field.OmitValueType{}, err.Error()))
	}
	if d := r.VerifyTimeout.Duration; d < 0 || d > MaxVerifyTimeout {
		errs = append(errs, field.Invalid(field.NewPath("verifyTimeout"), d.String(), fmt.Sprintf("must be between 0 (the default, %s) and %s", DefaultVerifyTimeout, MaxVerifyTimeout)))
	}
	if v := r.StockVersion; v != "" && !versionPattern.MatchString(v) {
		errs = append(errs, field.Invalid(field.NewPath("stockVersion"), v, "must be a version such as v1.36.3"))
	}
	if d := r.Settle.Duration; d < 0 || d > MaxSettle {
		errs = append(errs, field.Invalid(field.NewPath("settle"), d.String(), fmt.Sprintf("must be between 0 (the default, %s) and %s", DefaultSettle, MaxSettle)))
	} else if r.SettleTime() >= r.Verify() {
		errs = append(errs, field.Invalid(field.NewPath("settle"), r.SettleTime().String(), fmt.Sprintf("must be shorter than verifyTimeout (%s)", r.Verify())))
	}
	return errs.ToAggregate()
}

// GuardConfiguration returns the file that --guard-config names on the nodes: that of
// Configuration, complete with defaults and with the mode of the target. For a target
// without guard it is that of Audit, so that a plan can be checked.
func (r Request) GuardConfiguration() ([]byte, error) {
	mode := r.Target.Mode()
	if !r.Target.Guarded() {
		mode = guard.Audit
	}
	text := r.Configuration
	if text == "" {
		text = fmt.Sprintf("apiVersion: %s\nkind: %s\n", guard.ConfigAPIVersion, guard.ConfigKind)
	}
	config, err := guard.ParseConfiguration([]byte(text))
	if err != nil {
		return nil, err
	}
	var given struct {
		Mode guard.Mode `json:"mode"`
	}
	if err := yaml.Unmarshal([]byte(text), &given); err != nil {
		return nil, err
	}
	if r.Target.Guarded() && given.Mode != "" && given.Mode != mode {
		return nil, fmt.Errorf("mode: %s is not the target's (%s): leave it out, the target sets it", given.Mode, r.Target)
	}
	config.Mode = mode
	return yaml.Marshal(config)
}

// ParseRequest decodes what RequestAnnotation has, strictly, and validates it.
func ParseRequest(data string) (Request, error) {
	r, err := readRequest(data)
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return Request{}, fmt.Errorf("the request of the roll-out (annotation %s): %w", RequestAnnotation, err)
	}
	return r, nil
}

// readRequest is ParseRequest but for the yes to all held pods, which requests of earlier
// releases may have: a reader still finds what was requested.
func readRequest(data string) (Request, error) {
	var r Request
	if err := decode(data, &r); err != nil {
		return Request{}, err
	}
	valid := r
	valid.ReleaseHeld = false
	return r, valid.Validate()
}

func decode(data string, into any) error {
	wrongFields, err := kjson.UnmarshalStrict([]byte(data), into)
	if err != nil {
		return err
	}
	return utilerrors.NewAggregate(wrongFields)
}

func encode(from any) string {
	data, err := json.Marshal(from)
	if err != nil {
		panic(fmt.Sprintf("%T is made of plain fields: %v", from, err)) // cannot happen
	}
	return string(data)
}
