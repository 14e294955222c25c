// Dns is CoreDNS with the one plugin that answers for the Services of a cluster. It is a Go module of its own, because
// CoreDNS needs many others.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	dnsserver.Directives = []string{"ready", "errors", "kubernetes"} // in the order in which they see a question
	coremain.Run()
}
