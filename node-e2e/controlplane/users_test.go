package controlplane

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/specreport"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// user makes requests, by impersonation: the API server
// authorizes and admits them as that user's own.
type user struct {
	name   string
	groups []string
}

const (
	// groupEditors may do everything with every object, but not override.
	groupEditors = "kubelet-guard-e2e:editors"
	// groupOverride is bound by the project's own manifests.
	groupOverride = "kubelet-guard:overriders"
)

// The users of the specs.
var (
	// ordinary has every right but override.
	ordinary = user{name: "ordinary", groups: []string{groupEditors}}
	// overrider may override as well.
	overrider = user{name: "overrider", groups: []string{groupEditors, groupOverride}}
	// autoscaler is the real identity of the HorizontalPodAutoscaler controller.
	autoscaler = controller("horizontal-pod-autoscaler")
)

// controller is the identity of a controller of the controller manager.
func controller(name string) user {
	return user{name: "system:serviceaccount:kube-system:" + name, groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system"}}
}

// nodeUser is the kubelet of a node.
func nodeUser(node string) user {
	return user{name: "system:node:" + node, groups: []string{"system:nodes"}}
}

// createUsers gives the users their rights. The controllers and nodes have theirs.
func createUsers(ctx context.Context) {
	GinkgoHelper()
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "kubelet-guard-e2e-editor"},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"*"},
			Resources: []string{"*"},
			Verbs:     []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
		}},
	}
	framework.Must(client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}))
	framework.Must(client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: groupEditors}},
	}, metav1.CreateOptions{}))
	// The webhook counts the custom resources of a definition that may go.
	framework.Must(client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "kubelet-guard-e2e-dependents", Labels: map[string]string{guardv1alpha1.AggregateToWebhookLabel: "true"}},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{definitionGroup}, Resources: []string{"*"}, Verbs: []string{"list"}}},
	}, metav1.CreateOptions{}))
}

// config is the client configuration of the user.
func (u user) config() *rest.Config {
	config := rest.CopyConfig(adminConfig)
	config.Impersonate = rest.ImpersonationConfig{UserName: u.name, Groups: u.groups}
	return config
}

func (u user) client() kubernetes.Interface { return kubernetes.NewForConfigOrDie(u.config()) }

func (u user) dynamic() dynamic.Interface { return dynamic.NewForConfigOrDie(u.config()) }

// warned is client with a record of the warnings that the API server sends.
func (u user) warned() (kubernetes.Interface, *warnings) {
	w := &warnings{}
	config := u.config()
	config.WarningHandler = w
	return kubernetes.NewForConfigOrDie(config), w
}

// kubectl runs the real kubectl as the user.
func (u user) kubectl(ctx context.Context, args ...string) framework.KubectlResult {
	prefix := []string{"--as=" + u.name}
	for _, group := range u.groups {
		prefix = append(prefix, "--as-group="+group)
	}
	return kubectl(ctx, append(prefix, args...)...)
}

// kubeconfig writes a kubeconfig for the user and returns its path.
func (u user) kubeconfig() string {
	GinkgoHelper()
	config := framework.Must(clientcmd.LoadFromFile(cluster.Kubeconfig()))
	for _, info := range config.AuthInfos {
		info.Impersonate, info.ImpersonateGroups = u.name, u.groups
	}
	path := filepath.Join(artifactsDir(), specreport.FileName(u.name)+".kubeconfig")
	Expect(clientcmd.WriteToFile(*config, path)).To(Succeed())
	return path
}

// followAdvice runs, as the user, the command that a refusal ends with, exactly as
// it stands there, and returns it.
func (u user) followAdvice(ctx context.Context, refusal error) string {
	GinkgoHelper()
	Expect(refusal).To(BeRefused())
	message := refusal.Error()
	at := strings.Index(message, ": kubectl ")
	Expect(at).To(BeNumerically(">", 0), "a command in the refusal: %s", message)
	command, _, _ := strings.Cut(message[at+2:], ". In an emergency")
	return u.shell(ctx, strings.TrimSpace(command))
}

// shell runs a command line as the user, with the real kubectl in the path.
func (u user) shell(ctx context.Context, line string) string {
	GinkgoHelper()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+u.kubeconfig(), "PATH="+filepath.Dir(kubectlProgram())+":"+os.Getenv("PATH"))
	output, err := cmd.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "$ %s\n%s", line, output)
	return line
}

// warnings collects Warning headers.
type warnings struct {
	mu   sync.Mutex
	text []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(code int, _ string, text string) {
	if code != 299 || text == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, text)
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.text...)
}

// kubectl runs the real kubectl as the administrator.
func kubectl(ctx context.Context, args ...string) framework.KubectlResult {
	return kubectlInput(ctx, "", args...)
}

// kubectlInput is kubectl with a standard input.
func kubectlInput(ctx context.Context, input string, args ...string) framework.KubectlResult {
	return framework.Kubectl{Program: kubectlProgram(), Kubeconfig: cluster.Kubeconfig()}.RunWithInput(ctx, input, args...)
}
