package manifests

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"trow/manifests/node"
)

// Command returns trow manifest, for the image of this version.
func Command(version string) *cobra.Command {
	o := Defaults(version)
	noNode, etcdSecrets := false, false
	cmd := &cobra.Command{
		Use:   "manifest",
		Short: "Print the Kubernetes manifest that installs Trow",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if etcdSecrets {
				return writeEtcdSecrets(cmd.OutOrStdout(), o.Namespace, time.Now())
			}
			o.Node = !noNode
			if cmd.Flags().Changed("node-dir") && o.NodeDir == nil {
				o.NodeDir = []string{} // none, not those of the runtimes
			}
			text, err := Render(o)
			if err != nil {
				return errors.New(strings.Join(strings.Fields(err.Error()), " ")) // a command's error has one line
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Namespace, "namespace", o.Namespace, "namespace; the manifest creates it unless it is kube-public")
	f.StringVar(&o.Host, "host", o.Host, "name of the registry on nodes and workstations (default trow.<namespace>)")
	f.IntVar(&o.NodePort, "node-port", o.NodePort, "port of the registry on each node")
	f.IntVar(&o.LocalPort, "local-port", o.LocalPort,
		"port on loopback of each node where trow node listens (default below 30000: 21000 for node port 31000)")
	f.StringVar(&o.Image, "image", o.Image, "image of Trow itself, from a registry that the nodes can pull from")
	f.StringVar(&o.PullSecret, "pull-secret", o.PullSecret,
		"existing Secret (imagePullSecrets) in the namespace, with which nodes pull Trow's own image")
	o.addFlags(f)
	f.BoolVar(&etcdSecrets, "etcd-secrets", false,
		"print nothing but new certificates for --with-etcd, as two Secrets in "+
			"--namespace, for kubectl create -f -")
	f.StringVar(&o.Storage, "storage", o.Storage, "pvc: a persistent volume; empty: none, images are lost with the pod")
	f.StringVar(&o.StorageClass, "storage-class", o.StorageClass,
		"StorageClass of the volume, or of those of --with-etcd (default: the cluster's default)")
	f.StringVar(&o.Size, "size", o.Size, "size of the volume, or of each of those of --with-etcd")
	f.BoolVar(&o.Login, "login", o.Login,
		"close the registry to clients without a login: the server makes up a password; ServiceAccounts may pull")
	f.BoolVar(&o.AccessReview, "access-review", o.AccessReview,
		"with --login: let RBAC decide what ServiceAccounts may pull, push and delete")
	f.BoolVar(&o.LoopbackNames, "loopback-names", o.LoopbackNames,
		"let the webhook take 127.0.0.1:<node-port>/… for this registry; on a node, that is whatever listens there "+
			"first")
	f.StringVar(&o.Webhook, "webhook", o.Webhook, "off, audit (only warn) or enforce")
	f.StringSliceVar(&o.ExemptNamespaces, "exempt-namespaces", nil,
		"namespaces whose pods are not reviewed, beside kube-system and the registry's own")
	f.BoolVar(&noNode, "no-node", false, "do not change the nodes: no DaemonSet; see trow node --print")
	f.StringSliceVar(&o.Runtimes, "runtimes", o.Runtimes,
		"container runtimes of the nodes, whose directories are mounted: containerd (also of k3s and RKE2), docker, "+
			"crio")
	f.StringSliceVar(&o.NodeDir, "node-dir", o.NodeDir,
		"directories of the nodes to mount instead; empty: none, nothing is written (default: those of runtimes)")
	f.StringSliceVar(&o.Mirrors, "mirrors", nil,
		"registries whose images nodes pull through this one, such as docker.io,quay.io, or "+node.MirrorAll+
			"; they go on to those themselves when this one does not give an image")
	f.IntVar(&o.MirrorPort, "mirror-port", o.MirrorPort,
		"port on loopback of each node for --mirrors (default 24000 for node port 31000)")
	f.BoolVar(&o.DaemonJSON, "write-daemon-json", false,
		"with docker in --runtimes: let DaemonSet trow-node write the mirror of docker.io to /etc/docker/daemon.json "+
			"where there is no such file, and remove it without --mirrors; not where dockerd has the flag "+
			"--registry-mirror: it does not start with both")
	f.BoolVar(&o.Hosting, "hosting", o.Hosting,
		"name this registry to tools as the cluster's (ConfigMap local-registry-hosting in kube-public)")
	f.StringVar(&o.PriorityClass, "priority-class", o.PriorityClass,
		"PriorityClass of all pods (default: system-cluster-critical, and system-node-critical on nodes)")
	return cmd
}
