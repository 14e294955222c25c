package server

import (
	"fmt"
	"io"
	"net"
	"strings"
)

// Welcome is what the server prints when it is ready: what runs, and what to do next.
type Welcome struct {
	Version   string
	Scheme    string // http or https
	Addr      *net.TCPAddr
	DataDir   string
	Data      string   // what is in it
	Names     []string // local names
	MayRun    string   // which images may run
	Anonymous string   // what needs no login
	Trust     string   // how clients get to trust the server; empty without TLS
	CAFile    string   // file of the CA; empty without TLS

	Host       string // the name by which clients on this machine reach the server
	SkopeoFlag string // what skopeo needs to trust it
	Quiet      bool   // no next steps: no user works on the machine of a pod, and a server for pulls takes no push
}

// Print prints it.
func (w *Welcome) Print(out io.Writer) {
	fmt.Fprintf(out, "Trow %s is ready.\n\n  listens on   %s://%s\n  data         %s\n  local names  %s\n"+
		"  may run      %s\n  no login     %s\n%s", w.Version, w.Scheme, w.Addr, w.Data, strings.Join(w.Names, ", "),
		w.MayRun, w.Anonymous, w.Trust)
	if w.Quiet {
		return
	}
	// The steps need no right but that of the user, and images that are here.
	verify := ""
	if w.CAFile != "" {
		verify = " --cacert " + w.CAFile
		if w.Addr.IP.IsUnspecified() {
			fmt.Fprint(out, "\nOther machines reach it by names that the certificate must have: --tls-names "+
				"NAME,ADDRESS\n")
		}
	}
	fmt.Fprintf(out, "\nPush an image that is here (docker, podman), see it, and check what may run:\n"+
		"  docker save app:1 | trow import --data-dir %[1]s --as app:1 -\n"+
		"  skopeo copy%[2]s docker-daemon:app:1 docker://%[3]s/app:1\n"+
		"  trow ls --data-dir %[1]s app\n"+
		"  trow check -f pods.yaml --server %[4]s://%[3]s%[5]s\n", w.DataDir, w.SkopeoFlag, w.Host, w.Scheme, verify)
}
