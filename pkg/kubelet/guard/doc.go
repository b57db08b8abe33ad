/*
Package guard keeps protected pods running until their deletion is requested.

The kubelet has many reasons to stop a pod that no user wanted stopped: a pod
that fails admission after a restart, an object that vanished from the API, an
eviction signal, a lost sandbox. The patched kubelet calls this package before
each of them (hooks.go has the hooks, patches/ their places in the kubelet). It
refuses when the pod is protected and nothing proves that its deletion is
explicit.

Invariants, by precedence:

 1. A pod that does not match the selector takes exactly the path it takes in
    the stock kubelet. No hook queries the container runtime or the API server
    about it or writes a file for it.
 2. Evidence (evidence.go) ends protection at once, for the rest of this life of
    the pod. With evidence no hook refuses, and none waits.
 3. Without evidence a protected pod that is alive is not stopped. What is
    unknown (the runtime does not respond, an object cannot be read) counts in
    favour of the running pod.
 4. What a pod's author declared is not an attempt on the pod: completion,
    probes, restart rules, resizes, a changed image.

Only pods of the API source are ever protected. Static pods are replaced by
being killed, and a mirror pod is the shadow of a static one.

The package imports published modules only, never k8s.io/kubernetes, so that it
is compiled and tested in this repository and copied unchanged into every
supported Kubernetes tree. The kubelet reaches it through package-level
functions (hooks.go) over one installed Guard: with none installed, which is
the case in upstream's own unit tests, a Guard in mode Off takes its place.

Concurrency: a Guard is safe for use by any number of goroutines. It never
calls back into the kubelet while it holds its lock, and never holds its lock
while it queries the container runtime.
*/
package guard
