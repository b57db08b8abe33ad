// Package access is the verb access: who can read etcd besides the API server.
package access

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/access"
	"kubelet-guard.io/pkg/dataprotection/deletions"
)

// healthcheckClient is kubeadm's certificate for the probes of etcd's static pod.
const healthcheckClient = "/etc/kubernetes/pki/etcd/healthcheck-client.crt"

type options struct {
	*factory.Factory
	output       factory.Output
	etcdManifest string
	certificates []string
}

// NewCommand returns the verb access.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Factory: f}
	command := &cobra.Command{
		Use:   "access",
		Short: "Probe who can read etcd besides the API server",
		Long: `Probe a running etcd: does it accept clients without a certificate, or with
another certificate of its CA; is its authentication on, and who has the role
root; can others read its metrics and the files with keys; how long is its
history. It writes nothing.

The exit code is 1 if there is a problem.`,
		Example: `  guard-etcd access
  guard-etcd access --other-certificate=/etc/kubernetes/pki/etcd/peer.crt`,
		Args: cobra.NoArgs,
		RunE: verb.RunE(o),
	}
	o.output.AddFlags(command)
	flags := command.Flags()
	flags.StringVar(&o.etcdManifest, "etcd-manifest", factory.DefaultEtcdManifest, "The static pod of etcd")
	flags.StringSliceVar(&o.certificates, "other-certificate", nil, "Certificates, *.crt next to their keys, *.key, that should not read the API server's keys (default "+healthcheckClient+" if it is there)")
	_ = command.MarkFlagFilename("etcd-manifest", "yaml", "json")
	_ = command.MarkFlagFilename("other-certificate", "crt")
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(*cobra.Command, []string) error {
	if len(o.certificates) == 0 {
		if _, err := os.Stat(healthcheckClient); err == nil {
			o.certificates = []string{healthcheckClient}
		}
	}
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error { return o.output.Validate() }

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	facts := &access.Facts{Now: o.Now()}
	config, err := o.Connection.ClientConfig()
	if err != nil {
		return err
	}
	if facts.Members, err = o.Connection.Members(ctx); err != nil {
		return err
	}
	progress := factory.StartProgress(o.ErrOut, "Probing etcd")
	defer progress.Stop()
	for _, endpoint := range config.Endpoints {
		facts.Anonymous = append(facts.Anonymous, access.ProbeAnonymous(ctx, endpoint, config.TLS))
	}
	for _, certificate := range o.certificates {
		other, err := o.Connection.WithCertificate(certificate, strings.TrimSuffix(certificate, ".crt")+".key")
		if err != nil {
			facts.Certificates = append(facts.Certificates, access.Probe{Name: certificate, Err: err})
			continue
		}
		facts.Certificates = append(facts.Certificates, access.ProbeCertificate(ctx, certificate, other, o.Connection.Prefix()))
	}
	o.readEtcd(ctx, facts)
	files := o.Connection.SecretFiles()
	etcd, err := factory.ReadEtcdManifest(o.etcdManifest)
	facts.MetricsURLs, facts.ManifestErr = etcd.MetricsURLs, err
	for _, path := range append(files, etcd.SecretFiles...) {
		file := access.File{Path: path}
		info, err := os.Stat(path)
		if err != nil {
			file.Err = err
		} else {
			file.Mode = info.Mode()
		}
		facts.Files = append(facts.Files, file)
	}
	return o.output.PrintChecks(o.Out, "AccessReport", access.Judge(facts))
}

func (o *options) readEtcd(ctx context.Context, facts *access.Facts) {
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		facts.HistoryErr = err
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		facts.AuthErr, facts.RootErr, facts.HistoryErr = err, err, err
		return
	}
	defer client.Close()
	facts.ReadAuth(ctx, client)
	if decoder != nil {
		facts.History, facts.HistoryErr = deletions.Read(ctx, live, decoder, o.Connection.Prefix(), deletions.Options{})
	}
}
