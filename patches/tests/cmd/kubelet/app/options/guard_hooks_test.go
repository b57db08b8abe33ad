package options

import (
	"testing"

	"github.com/spf13/pflag"
)

func TestGuardConfigFlag(t *testing.T) {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	newKubeletServerOrDie().AddFlags(fs)

	flag := fs.Lookup("guard-config")

	if flag == nil {
		t.Fatal("the kubelet has no flag --guard-config")
	}
	if flag.DefValue != "" {
		t.Errorf("default %q, want none: the defaults apply", flag.DefValue)
	}
}
