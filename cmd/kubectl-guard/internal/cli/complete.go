package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// completionTimeout bounds what a press of the Tab key may take.
	completionTimeout = 3 * time.Second
	// completionLimit bounds what is offered for it, about.
	completionLimit = 500
	// completionPage is how many objects are read at a time.
	completionPage = 1000
)

// completeFlags registers the completion of the flags that all verbs have.
func completeFlags(s *settings, command *cobra.Command) {
	_ = command.RegisterFlagCompletionFunc("namespace", completeNamespaces(s))
	_ = command.RegisterFlagCompletionFunc("context", completeContexts(s))
	_ = command.RegisterFlagCompletionFunc("node-timeout", cobra.NoFileCompletions)
}

func completeContexts(s *settings) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		config, err := s.flags.ToRawKubeConfigLoader().RawConfig()
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

func completeNamespaces(s *settings) cobra.CompletionFunc {
	return func(command *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeFrom(s, command, nil, prefix, func(ctx context.Context, c *clients) []string {
			return namesOfObjects(ctx, c.metadata.Resource(corev1.SchemeGroupVersion.WithResource("namespaces")), prefix)
		})
	}
}

func completeNodes(s *settings) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeFrom(s, command, arguments, prefix, func(ctx context.Context, c *clients) []string {
			return namesOfObjects(ctx, c.metadata.Resource(corev1.SchemeGroupVersion.WithResource("nodes")), prefix)
		})
	}
}

// namesOfObjects returns the names of objects that begin with the prefix, at most completionLimit. It
// reads all objects, page by page, and of each the metadata only. What was found by the end of
// the time, or before an error, is better than nothing.
func namesOfObjects(ctx context.Context, objects metadata.ResourceInterface, prefix string) []string {
	var names []string
	options := metav1.ListOptions{Limit: completionPage}
	for {
		page, err := objects.List(ctx, options)
		if err != nil {
			return names
		}
		for i := range page.Items {
			if name := page.Items[i].Name; strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		if page.Continue == "" || len(names) >= completionLimit {
			return names
		}
		options.Continue = page.Continue
	}
}

// completeHeldPods offers the held pods whose object the kubelet misses.
func completeHeldPods(s *settings) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeKnownPods(s, command, arguments, prefix, func(pod guard.PodState) bool {
			return len(pod.Holds) > 0 && !pod.ObjectPresent
		})
	}
}

// completeProtectedPods offers all protected pods.
func completeProtectedPods(s *settings) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeKnownPods(s, command, arguments, prefix, func(guard.PodState) bool { return true })
	}
}

func completeKnownPods(s *settings, command *cobra.Command, arguments []string, prefix string, match func(guard.PodState) bool) ([]string, cobra.ShellCompDirective) {
	if len(arguments) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeFrom(s, command, nil, prefix, func(ctx context.Context, c *clients) []string {
		on := ""
		if node := command.Flag("node"); node != nil {
			on = node.Value.String()
		}
		answers, err := c.nodes.Query(ctx, on)
		if err != nil {
			return nil
		}
		pods, _ := podsOf(answers, func(pod guard.PodState) bool { return pod.Namespace == c.namespace && match(pod) })
		var names []string
		for _, pod := range pods {
			names = append(names, pod.Name)
		}
		return names
	})
}

// completeWorkloads offers what protect can be given: pod/NAME and the like.
func completeWorkloads(s *settings) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		kind, _, slash := strings.Cut(prefix, "/")
		if !slash {
			names, _ := withPrefix([]string{"deployment/", "statefulset/", "daemonset/", "replicaset/", "job/", "cronjob/", "pod/"}, prefix, nil)
			return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return completeFrom(s, command, arguments, prefix, func(ctx context.Context, c *clients) []string {
			mapper, err := s.flags.ToRESTMapper()
			if err != nil {
				return nil
			}
			resource, err := resourceOf(mapper, kind)
			if err != nil {
				return nil
			}
			var names []string
			for _, name := range namesOfObjects(ctx, c.metadata.Resource(resource).Namespace(c.namespace), strings.TrimPrefix(prefix, kind+"/")) {
				names = append(names, kind+"/"+name)
			}
			return names
		})
	}
}

// completeFrom offers what read returns, without what was given before. Errors
// offer nothing: a shell has no place for them.
func completeFrom(s *settings, command *cobra.Command, given []string, prefix string, read func(context.Context, *clients) []string) ([]string, cobra.ShellCompDirective) {
	c, err := s.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(command.Context(), completionTimeout)
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
