package cluster

import "context"

// Run runs a program with the administrator's kubeconfig, and returns its output, errors included.
func (c *Cluster) Run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), kubectlTimeout)
	defer cancel()
	out, err := c.command(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}
