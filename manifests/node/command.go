package node

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"trow/manifests/kube"
)

// maxCA bounds the file of --ca: a bundle has two certificates of 1 KiB at most.
const maxCA = 1 << 20

// Command returns trow node.
func Command() *cobra.Command {
	o := Options{Host: kube.DefaultHost(kube.DefaultNamespace), Port: kube.DefaultNodePort, Root: defaultRoot,
		NodeName: os.Getenv("NODE_NAME")}
	var flavour, ca string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Make this node reach and trust the registry (runs in the manifest's DaemonSet)",
		Long: "node listens on loopback, forwards to the registry, and configures the container runtime.\n" +
			"With --print it only prints how to configure the runtime by hand, where a DaemonSet may not write to " +
			"the node.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flavour != "" {
				return printFlavour(cmd, flavour, ca, o)
			}
			return run(cmd.Context(), o, zerolog.New(cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Host, "host", o.Host, "name of the registry in image names")
	f.IntVar(&o.Port, "port", o.Port, "node port of the registry; node listens on it as well, on loopback")
	f.IntVar(&o.LocalPort, "local-port", 0,
		"port on loopback that runtimes are configured with; the manifest sets it (default of --print: 21000 for node "+
			"port 31000)")
	f.StringSliceVar(&o.Mirrors, "mirrors", nil,
		"registries whose images the runtimes pull through this one, such as docker.io,quay.io, or "+MirrorAll+
			"; they go on to those themselves when this one does not give an image")
	f.IntVar(&o.MirrorPort, "mirror-port", 0,
		"port on loopback for --mirrors (default 24000 for node port 31000)")
	f.BoolVar(&o.DaemonJSON, "write-daemon-json", false,
		"write the mirror of docker.io to /"+dockerConfig+" where there is no such file; not where dockerd has the "+
			"flag --registry-mirror: it does not start with both")
	f.StringVar(&o.Root, "root", o.Root, "where the node's directories are mounted")
	f.StringVar(&flavour, "print", "", "print how to configure a platform by hand: "+strings.Join(Flavours(), ", "))
	f.StringVar(&ca, "ca", "", "with --print: file with the CA certificate ("+kube.CAKey+" of ConfigMap "+
		kube.ConfigMapName+"); - for standard input")
	return cmd
}

// run serves the node until ctx is done.
func run(ctx context.Context, o Options, logger zerolog.Logger) (err error) {
	logger = logger.With().Timestamp().Str("node", o.NodeName).Logger()
	if o.Client, o.Namespace, err = kube.InCluster(); err != nil {
		return fmt.Errorf("%w; trow node runs in a pod of the manifest; trow node --print prints what to do by hand",
			err)
	}
	// The Service's environment variables, of which the manifest asks for: they work before the cluster's DNS does.
	if host, port := os.Getenv("TROW_SERVICE_HOST"), os.Getenv("TROW_SERVICE_PORT"); host != "" && port != "" {
		o.Service = net.JoinHostPort(host, port)
	}
	o.Notify = func(e Event) { logEvent(logger, e) }
	o.LocalPort = localPortInPod(o)
	n, err := New(o)
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// localPortInPod returns the local port of a pod. The manifest of this version sets it. Where it is not set, this image
// runs with the manifest of an earlier version, whose probes expect the earlier port: with another one, the kubelet
// would restart the pod again and again.
func localPortInPod(o Options) int { return cmp.Or(o.LocalPort, olderLocalPort(o.Port)) }

func logEvent(logger zerolog.Logger, e Event) {
	line := logger.Info()
	if e.Warning() {
		line = logger.Warn()
	}
	if e.Err != nil {
		line.Err(e.Err)
	}
	line.Str("event", string(e.Kind)).Str("what", e.Message).Msg("node")
}

// printFlavour prints what to do by hand on a platform. file has the CA certificate.
func printFlavour(cmd *cobra.Command, flavour, file string, o Options) error {
	in := cmd.InOrStdin()
	switch file {
	case "":
		return fmt.Errorf("ca: the CA certificate is required; kubectl -n %s get configmap %s -o "+
			"jsonpath='{.data.%s}' | trow node --print %s --ca -", kube.DefaultNamespace, kube.ConfigMapName,
			strings.ReplaceAll(kube.CAKey, ".", `\.`), flavour)
	case "-":
	default:
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("ca: %w", err)
		}
		defer f.Close()
		in = f
	}
	pem, err := io.ReadAll(io.LimitReader(in, maxCA))
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	text, err := Print(flavour, PrintOptions{Host: o.Host, Port: o.Port, LocalPort: o.LocalPort, CA: string(pem),
		Mirrors: o.Mirrors, MirrorPort: o.MirrorPort})
	if err != nil {
		return err
	}
	_, err = io.WriteString(cmd.OutOrStdout(), text)
	return err
}
