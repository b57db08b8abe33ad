/*
Package criproxy stands between a kubelet and its container runtime, counts the
calls that pass and lets chosen ones fail.

It passes on whatever comes, byte by byte and in both directions, so that methods
of later CRI versions and streams pass as well. What it knows of the CRI (the
messages of k8s.io/cri-api, by their descriptors) it uses only to find out whose call
one is: every Call names the pod that it is about, or none when it is about the
whole node, as the lists are from which the kubelet relists its pods.

	proxy, err := criproxy.Start(ctx, socket, runtimeSocket)
	// containerRuntimeEndpoint: proxy.Endpoint()
	remove := proxy.Inject(criproxy.Fault{
		Method: "ListContainers", When: criproxy.Filtered, Err: criproxy.Unavailable,
	})

A Proxy works in this program: a kubelet that uses it has no runtime when the
program ends. Close it after the kubelet has stopped using it.
*/
package criproxy
