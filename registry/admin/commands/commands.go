// Package commands has the commands for what a registry holds (ls, tags, inspect, history, cp, rm, du), those for what
// it caches of others (warm, cached, evict), and those with which an administrator operates it: gc, retention, scrub,
// rebuild, export, import, migrate, token, can-i and pull-secret.
//
// # Words
//
//   - collect, scrub, rebuild: as in package storage; archive as in package archive; robot and rule as in package auth.
//   - job: as in package admin: work that the running server does for a command.
//
// # Invariants
//
//   - Every command but rebuild, and can-i with --config, talks to a running server, by the socket in its data
//     directory or over the network with a login. The server keeps serving meanwhile. rebuild works on a data directory
//     that no server uses.
//   - A password goes to the registry that it is for, and to no other that a command names.
//   - The job names, their parameters and their JSON are those of earlier versions: an older command works with a newer
//     server.
//   - The secret of a robot is printed once and written nowhere.
//   - Results go to standard output, progress and remarks to standard error.
//
// # What it does not do
//
// It never opens the storage of a running server, decides nothing about access, and reads no settings: the program
// passes in what it needs.
package commands

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"

	"github.com/dustin/go-humanize/english"
	"github.com/spf13/cobra"

	"trow/registry/admin"
	"trow/registry/auth"
	"trow/registry/maintenance"
)

// These errors mean that a command worked and that its answer is no. The exit code is 1 for them, and 2 for others.
var (
	ErrDamaged = errors.New("damaged content found")
	ErrDenied  = errors.New("denied")
)

// Program is what the commands need from the program that they are part of.
type Program struct {
	// DataDir adds the flags that name the server to a command (--config, --data-dir), and returns the function that
	// finds its data directory when the command runs.
	DataDir func(cmd *cobra.Command) func() (string, error)
	// Engines adds the flags that say where the data of a server is to a command, and returns the function that finds
	// them all when the command runs.
	Engines func(cmd *cobra.Command) func() (maintenance.Engines, error)
	// Policy returns the rules of the configuration file that --config names, and what finds a caller by name; see
	// [auth.Options.Impersonate].
	Policy func(cmd *cobra.Command) (p *auth.Policy, caller func(string, []string) (*auth.Identity, error), err error)
	// Servers are the host[:port] under which nodes reach the registry.
	Servers []string
	// Cluster knows manifests and pods.
	Cluster Cluster
}

// Cluster is what the commands ask of a cluster and of its manifests.
type Cluster interface {
	// Servers are the host[:port] under which nodes reach the registry.
	Servers() []string
	// Images returns the images of the pods in files with manifests; in is read for "-". note gets what may be missing.
	Images(in io.Reader, files []string, note func(text string)) (images []string, err error)
	// Running returns the images of the pods of a cluster, and the platforms of its nodes, if they are known.
	Running(ctx context.Context, kubeconfig, kubecontext string) (images, platforms []string, err error)
}

// Commands returns all commands of the package.
func (p Program) Commands() []*cobra.Command {
	return []*cobra.Command{
		p.lsCommand(), p.tagsCommand(), p.inspectCommand(), p.historyCommand(), p.cpCommand(), p.rmCommand(),
		p.duCommand(), p.warmCommand(), p.cachedCommand(), p.evictCommand(),
		p.gcCommand(), p.retentionCommand(), p.scrubCommand(), p.rebuildCommand(),
		p.exportCommand(), p.importCommand(), p.migrateCommand(),
		p.tokenCommand(), p.canICommand(), p.pullSecretCommand(),
	}
}

// connector returns a client of the server that the flags of a command name.
type connector func() (*admin.Client, error)

// connect adds the flags that name the server to cmd.
func (p Program) connect(cmd *cobra.Command) connector {
	t := p.target(cmd)
	return func() (*admin.Client, error) {
		e, err := t.open(cmd)
		if err != nil {
			return nil, err
		}
		return e.admin, nil
	}
}

// onServer makes cmd call run with a client of the server.
func (p Program) onServer(cmd *cobra.Command, run func(*cobra.Command, []string, *admin.Client) error) *cobra.Command {
	connect := p.connect(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := connect()
		if err != nil {
			return err
		}
		return explain(cmd.Context(), run(cmd, args, c))
	}
	return cmd
}

// progress decodes what a job reports and calls show with it.
func progress[T any](show func(T)) func(json.RawMessage) error {
	return func(b json.RawMessage) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		show(v)
		return nil
	}
}

// runQuietly runs a job that reports no progress and stores its outcome in done.
func runQuietly(ctx context.Context, c *admin.Client, job string, q url.Values, done any) error {
	return c.Run(ctx, job, q, func(json.RawMessage) error { return nil }, done)
}

// count is a number of things in English: 1 blob, 2 blobs.
func count(n int, singular, plural string) string { return english.Plural(n, singular, plural) }
