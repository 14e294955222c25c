package admission

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Host returns the host:port for clients to push to: in a cluster the first of Names, which nodes and workstations
// know, elsewhere this machine and the port of the listener.
func (o *PolicyOptions) Host(port int, inCluster bool) string {
	if inCluster {
		return o.Names[0]
	}
	return net.JoinHostPort("localhost", strconv.Itoa(port))
}

// Complete sets Names to defaults if it is empty, and folds them to lower case, in which hosts are compared.
func (o *PolicyOptions) Complete(defaults []string) {
	if len(o.Names) == 0 {
		o.Names = defaults
	}
	o.Names = slices.Clone(o.Names) // it may be the list that a flag owns
	for i, name := range o.Names {
		o.Names[i] = strings.ToLower(name)
	}
}

// LoopbackCheck returns a line of /readyz?verbose about the local names that are loopback, if the process runs in a
// cluster. It is information, and always as it should be: a setting lists such names, and trow node serves them.
func (o *PolicyOptions) LoopbackCheck(inCluster bool) func() (ok bool, text string) {
	var names []string
	for _, name := range o.Names {
		host := name
		if h, _, err := net.SplitHostPort(name); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback() {
			names = append(names, name)
		}
	}
	text := ""
	if inCluster && len(names) > 0 {
		text = "loopback names are whatever listens on the node: " + strings.Join(names, ", ") + " (setting names)"
	}
	return func() (bool, string) { return true, text }
}
