package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"trow/manifests/kube"
)

// Commands returns disarm, arm and rotate-ca, which work on a cluster from outside.
func Commands() []*cobra.Command {
	return []*cobra.Command{disarmCommand(), armCommand(), rotateCommand()}
}

// commandTimeout bounds a command, so that an unreachable API server does not block a terminal.
const commandTimeout = 30 * time.Second

// onCluster makes a command that reaches the cluster as kubectl does, with the rights of the user who runs it.
func onCluster(cmd *cobra.Command, do func(context.Context, *kube.Client, io.Writer) error) *cobra.Command {
	var kubeconfig, kubecontext string
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := kube.FromKubeconfig(kubeconfig, kubecontext)
		if err != nil {
			return errors.New(strings.Join(strings.Fields(err.Error()), " ")) // a command's error has one line
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), commandTimeout)
		defer cancel()
		return do(ctx, client, cmd.OutOrStdout())
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file (default: KUBECONFIG, then ~/.kube/config)")
	cmd.Flags().StringVar(&kubecontext, "context", "", "context of the kubeconfig file (default: the current one)")
	return cmd
}

func disarmCommand() *cobra.Command {
	return onCluster(&cobra.Command{
		Use:   "disarm",
		Short: "Remove the webhook from a cluster until trow arm: every image may run",
		Long: `disarm empties the ValidatingWebhookConfiguration and notes on the ClusterRole that the server must not
fill it again. It works without a running server, so it helps when nothing starts.`,
	}, func(ctx context.Context, client *kube.Client, out io.Writer) error {
		found, err := Disarm(ctx, client)
		if err != nil {
			return err
		}
		if !found {
			fmt.Fprintln(out, "No webhook was registered. None will be until trow arm.")
			return nil
		}
		fmt.Fprintln(out, "Webhook removed: every image may run, until trow arm.")
		return nil
	})
}

func armCommand() *cobra.Command {
	return onCluster(&cobra.Command{
		Use:   "arm",
		Short: "Undo trow disarm: the server registers the webhook again",
	}, func(ctx context.Context, client *kube.Client, out io.Writer) error {
		if err := Arm(ctx, client); err != nil {
			return err
		}
		fmt.Fprintln(out, "The server registers the webhook within seconds, in the mode of its setting webhook.")
		return nil
	})
}

func rotateCommand() *cobra.Command {
	var namespace string
	cmd := onCluster(&cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace the CA: nodes and the webhook follow automatically, workstations do not",
		Long: `rotate-ca requests a new CA from the server. The server first publishes it beside the old one (ConfigMap
` + kube.ConfigMapName + `, /ca.crt), signs with it after the time of the setting ca-overlap, and drops the old one
after that time again.`,
	}, func(ctx context.Context, client *kube.Client, out io.Writer) error {
		if err := RotateCA(ctx, client, namespace); err != nil {
			return err
		}
		fmt.Fprintf(out, "The new CA is in ConfigMap %s/%s within seconds; "+
			"workstations need it before ca-overlap has passed.\n", namespace, kube.ConfigMapName)
		return nil
	})
	cmd.Flags().StringVar(&namespace, "namespace", kube.DefaultNamespace, "namespace of the registry")
	return cmd
}
