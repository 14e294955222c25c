package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Commands are disarm, arm and rotate-ca, which work on a cluster from outside and write to out.
func Commands(out io.Writer) []*cobra.Command {
	return []*cobra.Command{disarmCommand(out), armCommand(out), rotateCommand(out)}
}

// onCluster makes a command that works on a cluster as kubectl does, with the rights of whoever calls it.
func onCluster(cmd *cobra.Command, do func(context.Context, Client) error) *cobra.Command {
	var kubeconfig, kubecontext string
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := Outside(kubeconfig, kubecontext)
		if err != nil {
			return errors.New(strings.Join(strings.Fields(err.Error()), " "))
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
		defer cancel()
		return do(ctx, client)
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the cluster (default: KUBECONFIG, then ~/.kube/config)")
	cmd.Flags().StringVar(&kubecontext, "context", "", "which context of it (default: the current one)")
	return cmd
}

func disarmCommand(out io.Writer) *cobra.Command {
	return onCluster(&cobra.Command{
		Use:   "disarm",
		Short: "Take the webhook away from a cluster, until trow arm: every image may run",
		Long: "disarm deletes the ValidatingWebhookConfiguration and notes on the ClusterRole that it is to stay away.\n" +
			"It needs no running server, so it is also the way out when nothing starts.",
	}, func(ctx context.Context, client Client) error {
		found, err := Disarm(ctx, client)
		if err != nil {
			return err
		}
		if !found {
			fmt.Fprintln(out, "There was no webhook. It stays away until trow arm.")
			return nil
		}
		fmt.Fprintln(out, "The webhook is gone: every image may run. It stays away until trow arm.")
		return nil
	})
}

func armCommand(out io.Writer) *cobra.Command {
	return onCluster(&cobra.Command{
		Use:   "arm",
		Short: "Take back trow disarm: the server registers the webhook again",
	}, func(ctx context.Context, client Client) error {
		if err := Arm(ctx, client); err != nil {
			return err
		}
		fmt.Fprintln(out, "The server registers the webhook within seconds, as its setting webhook says.")
		return nil
	})
}

func rotateCommand(out io.Writer) *cobra.Command {
	var namespace string
	cmd := onCluster(&cobra.Command{
		Use:   "rotate-ca",
		Short: "Replace the CA: nodes and the webhook follow by themselves, workstations have to be told",
		Long: "rotate-ca asks the server for a new CA. It is told beside the old one first (ConfigMap " + ConfigMapName + ", /ca.crt),\n" +
			"signs after the time of the setting ca-overlap, and the old one goes after that time again.",
	}, func(ctx context.Context, client Client) error {
		if err := RotateCA(ctx, client, namespace); err != nil {
			return err
		}
		fmt.Fprintf(out, "The new CA is in ConfigMap %s/%s within seconds; workstations need it before the time of ca-overlap has passed.\n",
			namespace, ConfigMapName)
		return nil
	})
	cmd.Flags().StringVar(&namespace, "namespace", "kube-public", "namespace of the registry")
	return cmd
}
