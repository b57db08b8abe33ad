package token

import (
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
)

func TestGuardNoTokenIsRequestedForAVanishedPod(t *testing.T) {
	node := guardtest.Install(t)
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p-uid"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
	clock := testingclock.NewFakeClock(time.Now())
	getter := &fakeTokenGetter{tr: &authenticationv1.TokenRequest{
		Spec:   authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(3600))},
		Status: authenticationv1.TokenRequestStatus{Token: "t", ExpirationTimestamp: metav1.NewTime(clock.Now().Add(time.Hour))},
	}}
	manager := &Manager{cache: map[string]*authenticationv1.TokenRequest{}, clock: clock, getToken: getter.getToken}
	request := func() *authenticationv1.TokenRequest {
		return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: ptr.To(int64(3600)),
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", Name: pod.Name, UID: pod.UID},
		}}
	}
	guardtest.Protect(pod)
	node.Run(pod)
	node.Appear(pod)
	if _, err := manager.GetServiceAccountToken("ns", "default", request()); err != nil || getter.count != 1 {
		t.Fatalf("error %v after %d requests, want one that succeeds", err, getter.count)
	}

	node.Vanish(t, pod)
	clock.Step(50 * time.Minute)
	if token, err := manager.GetServiceAccountToken("ns", "default", request()); err != nil || token == nil {
		t.Errorf("the token that is still good: %v, %v", token, err)
	}
	clock.Step(time.Hour)
	if _, err := manager.GetServiceAccountToken("ns", "default", request()); err == nil {
		t.Errorf("an expired token was given out")
	}
	if getter.count != 1 {
		t.Errorf("%d requests, want none for a vanished pod", getter.count-1)
	}

	node.Appear(pod)
	if _, err := manager.GetServiceAccountToken("ns", "default", request()); err != nil || getter.count != 2 {
		t.Errorf("error %v after %d requests when the object is back", err, getter.count-1)
	}
}
