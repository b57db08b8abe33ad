// Command etcd is the etcd server. Upstream's own main package is in the
// go.etcd.io/etcd/v3 module, which needs every other etcd module for its tests;
// this one needs the server only.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
