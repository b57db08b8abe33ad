// Package completion completes arguments and flags in a shell.
package completion

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/paging"
)

const (
	// timeout bounds what a press of the Tab key may take.
	timeout = 3 * time.Second
	// limit bounds what is offered for it, about.
	limit = 500
	// pageSize is how many objects are read at a time.
	pageSize = 1000
)

// Flags registers the completion of the flags that all verbs have.
func Flags(s *factory.Factory, command *cobra.Command) {
	_ = command.RegisterFlagCompletionFunc("namespace", namespaces(s))
	_ = command.RegisterFlagCompletionFunc("context", contexts(s))
	_ = command.RegisterFlagCompletionFunc("node-timeout", cobra.NoFileCompletions)
}

func contexts(s *factory.Factory) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		config, err := s.Flags.ToRawKubeConfigLoader().RawConfig()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for name := range config.Contexts {
			names = append(names, name)
		}
		return withPrefix(names, prefix, nil)
	}
}

func namespaces(s *factory.Factory) cobra.CompletionFunc {
	return func(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return from(s, command, nil, prefix, func(ctx context.Context, c *factory.Clients) []string {
			return namesOfObjects(ctx, c.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("namespaces")), prefix)
		})
	}
}

// AddNodeFlag adds the flag that restricts a verb to one node.
func AddNodeFlag(s *factory.Factory, command *cobra.Command, node *string) {
	command.Flags().StringVar(node, "node", "", "Query this node only")
	_ = command.RegisterFlagCompletionFunc("node", Nodes(s))
}

// Nodes offers the names of nodes.
func Nodes(s *factory.Factory) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return from(s, command, arguments, prefix, func(ctx context.Context, c *factory.Clients) []string {
			return namesOfObjects(ctx, c.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("nodes")), prefix)
		})
	}
}

// namesOfObjects returns the names of objects that start with the prefix, at most limit. It
// reads all objects, page by page, and of each the metadata only. What was found by the end of
// the time, or before an error, is better than nothing.
func namesOfObjects(ctx context.Context, objects metadata.ResourceInterface, prefix string) []string {
	var names []string
	_, _ = paging.Each(ctx, metav1.ListOptions{Limit: pageSize}, objects.List, func(page *metav1.PartialObjectMetadataList) bool {
		for i := range page.Items {
			if name := page.Items[i].Name; strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		return len(names) < limit
	})
	return names
}

// HeldPods offers the held pods whose object the kubelet misses.
func HeldPods(s *factory.Factory) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return knownPods(s, command, arguments, prefix, func(pod guard.PodState) bool {
			return len(pod.Holds) > 0 && !pod.ObjectPresent
		})
	}
}

// ProtectedPods offers all protected pods.
func ProtectedPods(s *factory.Factory) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return knownPods(s, command, arguments, prefix, func(guard.PodState) bool { return true })
	}
}

func knownPods(s *factory.Factory, command *cobra.Command, arguments []string, prefix string, match func(guard.PodState) bool) ([]string, cobra.ShellCompDirective) {
	if len(arguments) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return from(s, command, nil, prefix, func(ctx context.Context, c *factory.Clients) []string {
		on := ""
		if node := command.Flag("node"); node != nil {
			on = node.Value.String()
		}
		responses, err := c.Nodes.Query(ctx, on)
		if err != nil {
			return nil
		}
		pods, _ := pods.Select(responses, func(pod guard.PodState) bool { return pod.Namespace == c.Namespace && match(pod) })
		var names []string
		for _, pod := range pods {
			names = append(names, pod.Name)
		}
		return names
	})
}

// Workloads offers what protect can be given: pod/NAME and the like.
func Workloads(s *factory.Factory) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		kind, _, slash := strings.Cut(prefix, "/")
		if !slash {
			names, _ := withPrefix([]string{"deployment/", "statefulset/", "daemonset/", "replicaset/", "job/", "cronjob/", "pod/"}, prefix, nil)
			return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return from(s, command, arguments, prefix, func(ctx context.Context, c *factory.Clients) []string {
			mapper, err := s.Flags.ToRESTMapper()
			if err != nil {
				return nil
			}
			resource, err := resourceOf(mapper, kind)
			if err != nil {
				return nil
			}
			var names []string
			for _, name := range namesOfObjects(ctx, c.Metadata.Resource(resource).Namespace(c.Namespace), strings.TrimPrefix(prefix, kind+"/")) {
				names = append(names, kind+"/"+name)
			}
			return names
		})
	}
}

// from offers what read returns, without what was given before. Errors
// offer nothing: a shell has no place for them.
func from(s *factory.Factory, command *cobra.Command, given []string, prefix string, read func(context.Context, *factory.Clients) []string) ([]string, cobra.ShellCompDirective) {
	c, err := s.Connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(command.Context(), timeout)
	defer cancel()
	return withPrefix(read(ctx, c), prefix, given)
}

func withPrefix(names []string, prefix string, given []string) ([]string, cobra.ShellCompDirective) {
	taken := map[string]bool{}
	for _, name := range given {
		taken[name] = true
	}
	var offered []string
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && !taken[name] {
			offered = append(offered, name)
			taken[name] = true
		}
	}
	return offered, cobra.ShellCompDirectiveNoFileComp
}

// resourceOf resolves what users call a kind, short names included.
func resourceOf(mapper meta.RESTMapper, kind string) (schema.GroupVersionResource, error) {
	partial, group := schema.ParseResourceArg(kind)
	if partial != nil {
		if resource, err := mapper.ResourceFor(*partial); err == nil {
			return resource, nil
		}
	}
	return mapper.ResourceFor(group.WithVersion(""))
}
