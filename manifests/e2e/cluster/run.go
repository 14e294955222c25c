package cluster

import "context"

// Run runs a program as the cluster's administrator, and returns what it prints, errors included.
func (c *Cluster) Run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), kubectlTimeout)
	defer cancel()
	out, err := c.command(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}
