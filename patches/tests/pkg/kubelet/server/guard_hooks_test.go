package server

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/server/flagz"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// requestGuardPods returns the answer to a request for guard.PodsPath.
func requestGuardPods(t *testing.T, fw *serverTestFramework, method string) (code int, body []byte) {
	t.Helper()
	return requestPath(t, fw, method, guard.PodsPath)
}

func requestPath(t *testing.T, fw *serverTestFramework, method, path string) (code int, body []byte) {
	t.Helper()
	request, err := http.NewRequest(method, fw.testHTTPServer.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func TestGuardPodsAreServed(t *testing.T) {
	node := guardtest.Install(t)
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "web-uid"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "server"}}}}
	guardtest.Protect(pod)
	node.Run(pod)
	if !guard.Refuse(pod, guard.Evicted, "memory") {
		t.Fatal("the guard did not refuse")
	}
	fw := newServerTest(ktesting.Init(t))
	defer fw.testHTTPServer.Close()

	code, body := requestGuardPods(t, fw, http.MethodGet)

	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	var list guard.PodList
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if len(list.Items) != 1 || list.Items[0].UID != pod.UID || list.Items[0].State != guard.Held || len(list.Items[0].Holds) != 1 || list.Items[0].Holds[0].Cause != guard.Evicted {
		t.Errorf("got %+v, want one pod that is held because of %s", list.Items, guard.Evicted)
	}
	if bucket := fw.serverUnderTest.getMetricBucket(guard.PodsPath); bucket != "guard" {
		t.Errorf("requests are counted as %q, want guard", bucket)
	}
}

func TestGuardPodsAreReadOnly(t *testing.T) {
	guardtest.Install(t)
	fw := newServerTest(ktesting.Init(t))
	defer fw.testHTTPServer.Close()

	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if code, _ := requestGuardPods(t, fw, method); code != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d, want %d", method, code, http.StatusMethodNotAllowed)
		}
	}
}

func TestGuardPodsAreServedWithoutDebuggingHandlers(t *testing.T) {
	guardtest.Install(t)
	fw := newServerTestWithDebug(ktesting.Init(t), false, nil)
	defer fw.testHTTPServer.Close()

	if code, body := requestGuardPods(t, fw, http.MethodGet); code != http.StatusOK {
		t.Errorf("status %d: %s", code, body)
	}
}

func TestGuardPodsNeedAuthorization(t *testing.T) {
	guardtest.Install(t)
	ctx := ktesting.Init(t)
	fw := newServerTest(ctx)
	defer fw.testHTTPServer.Close()
	getter := NewNodeAuthorizerAttributesGetter(authzTestNodeName)
	var asked []string
	fw.fakeAuth.attributesFunc = func(u user.Info, request *http.Request) []authorizer.Attributes {
		return getter.GetRequestAttributes(ctx, u, request)
	}
	fw.fakeAuth.authorizeFunc = func(a authorizer.Attributes) (authorizer.Decision, string, error) {
		asked = append(asked, a.GetVerb()+" "+a.GetResource()+"/"+a.GetSubresource())
		return authorizer.DecisionNoOpinion, "", nil
	}

	// Whole objects need what they need at /pods, the path next to it.
	for _, path := range []string{guard.PodsPath, guard.PodsPath + "?objects=true", "/pods"} {
		asked = nil
		if code, _ := requestPath(t, fw, http.MethodGet, path); code != http.StatusForbidden {
			t.Errorf("%s: status %d for a user without rights, want %d", path, code, http.StatusForbidden)
		}
		// Either right is enough, and the smaller one comes first.
		want := []string{"get nodes/pods", "get nodes/proxy"}
		if len(asked) != 2 || asked[0] != want[0] || asked[1] != want[1] {
			t.Errorf("%s: authorized with %q, want %q", path, asked, want)
		}
	}
}

func TestGuardPodsAreNotServedWithoutAGuard(t *testing.T) {
	defer guard.Install(guard.Install(nil))
	fw := newServerTest(ktesting.Init(t))
	defer fw.testHTTPServer.Close()

	if code, _ := requestGuardPods(t, fw, http.MethodGet); code != http.StatusNotFound {
		t.Errorf("status %d, want %d", code, http.StatusNotFound)
	}
}

// The read-only port has no authentication.
func TestGuardPodsAreNotServedWithoutAuthentication(t *testing.T) {
	guardtest.Install(t)
	ctx := ktesting.Init(t)
	with := newServerTest(ctx)
	with.testHTTPServer.Close()
	// As the kubelet makes it for the read-only port.
	without := NewServer(ctx, with.fakeKubelet, with.serverUnderTest.resourceAnalyzer, nil, flagz.NamedFlagSetsReader{}, nil, nil)
	fw := &serverTestFramework{serverUnderTest: &without, testHTTPServer: httptest.NewServer(&without)}
	defer fw.testHTTPServer.Close()

	if code, body := requestGuardPods(t, fw, http.MethodGet); code != http.StatusNotFound {
		t.Errorf("status %d: %s, want %d", code, body, http.StatusNotFound)
	}
}
