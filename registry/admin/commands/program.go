package commands

import (
	"github.com/spf13/cobra"

	"trow/registry/auth"
	"trow/registry/maintenance"
	"trow/registry/service"
	"trow/registry/settings"
)

// New makes a Program for servers with these settings: load returns them for the flags of a command.
func New(load func(*cobra.Command) (*service.Options, error), cluster Cluster) Program {
	return Program{
		DataDir: func(cmd *cobra.Command) func() (string, error) {
			settings.AddConfigFlag(cmd.Flags())
			maintenance.AddDataDirFlag(cmd.Flags(), new(string))
			return func() (string, error) {
				o, err := load(cmd)
				if err != nil {
					return "", err
				}
				return o.Data.DataDir, nil
			}
		},
		Engines: func(cmd *cobra.Command) func() (maintenance.Engines, error) {
			settings.AddConfigFlag(cmd.Flags())
			new(maintenance.Engines).AddEngineFlags(cmd.Flags())
			return func() (maintenance.Engines, error) {
				o, err := load(cmd)
				if err != nil {
					return maintenance.Engines{}, err
				}
				return o.Data.Engines, nil
			}
		},
		Policy: func(cmd *cobra.Command) (*auth.Policy, func(string, []string) (*auth.Identity, error), error) {
			o, err := load(cmd)
			if err != nil {
				return nil, nil, err
			}
			p, err := o.Auth.Policy()
			return p, o.Auth.Impersonate, err
		},
		Servers: cluster.Servers(), Cluster: cluster,
	}
}
