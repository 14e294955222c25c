// Package check is the command trow check: what the webhook would say of manifests, before they are applied.
//
// # Words
//
//   - document: one object of the manifests, see [admission.Document].
//   - reviewer: who answers a review. It is a policy over a data directory, or a running server.
//
// # Invariants
//
//  1. A workload is denied for what its pods would be denied for, whatever the setting enforce-templates says: a check
//     asks what would run.
//  2. A reviewer that cannot answer is an error, never a verdict.
//
// # What it does not do
//
// It changes nothing, neither in the data directory nor on the server: every review is a dry run.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	admissionv1 "k8s.io/api/admission/v1"

	"trow/admission"
)

// ErrDenied ends a check that found an image that may not run.
var ErrDenied = errors.New("denied")

// Program is what the command needs of the program around it.
type Program struct {
	// Policy returns the settings of the policy, from the flags of the command, the environment and the configuration
	// file. The command has a flag for each of them.
	Policy func(*cobra.Command) (admission.PolicyOptions, error)
}

// options are the flags of the command that are not settings.
type options struct {
	files     []string
	dataDir   string
	server    string
	ca        string
	tokenFile string
	output    string
}

// Command returns the command. Its errors are ErrDenied if an image may not run, or what kept it from finding out.
func Command(p Program) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "check -f FILE",
		Short: "Check manifests against the policy: exit code 1 if an image may not run",
		Long: "check reviews every pod and workload in the files as the webhook would. It knows the images from the data\n" +
			"directory of a stopped server (--data-dir), or asks a running server (--server), whose settings count then.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := p.Policy(cmd)
			if err != nil {
				return err
			}
			review, done, err := o.reviewer(cmd.Context(), settings)
			if err != nil {
				return err
			}
			defer done()
			switch o.output {
			case "table":
				return run(cmd, o.files, review, &text{cmd.OutOrStdout()})
			case "json":
				return run(cmd, o.files, review, &list{out: cmd.OutOrStdout(), All: []result{}})
			}
			return fmt.Errorf("output: %.40q: want table or json", o.output)
		},
	}
	f := cmd.Flags()
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "data" { // its name before version 0.2
			name = "data-dir"
		}
		return pflag.NormalizedName(name)
	})
	f.StringSliceVarP(&o.files, "filename", "f", nil, "file with manifests, YAML or JSON; - for standard input")
	f.StringVarP(&o.dataDir, "data-dir", "d", "", "data directory of a stopped server")
	f.StringVar(&o.server, "server", "", "URL of a running server")
	f.StringVar(&o.ca, "cacert", "", "with --server: file of the CA (PEM) that has signed the certificate of the server")
	f.StringVar(&o.tokenFile, "token-file", "", "with --server: file with the token of its setting validate-token-file")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	new(admission.PolicyOptions).AddFlags(f) // Program.Policy reads them
	cmd.MarkFlagsMutuallyExclusive("data-dir", "server")
	cmd.MarkFlagsOneRequired("data-dir", "server")
	_ = cmd.MarkFlagRequired("filename") // the flag exists
	return cmd
}

// run reviews the files in order, and prints each object and what there is to say about it.
func run(cmd *cobra.Command, files []string, review reviewer, to printer) error {
	denied, checked := 0, 0
	for _, file := range files {
		docs, err := readDocuments(cmd.InOrStdin(), file)
		if err != nil {
			return err
		}
		for _, d := range docs {
			r := result{File: file, Line: d.Line, Kind: d.Kind, Name: d.Name, Outcome: "skipped"}
			if d.Review != nil {
				resp, err := review(cmd.Context(), d.Review)
				if err != nil {
					return fmt.Errorf("%s: %w", r.where(), err)
				}
				checked++
				if r.judge(resp); r.Outcome == "denied" {
					denied++
				}
			}
			to.print(r)
		}
	}
	if err := to.end(checked, denied); err != nil {
		return err
	}
	if denied > 0 {
		return ErrDenied
	}
	return nil
}

// readDocuments reads a file of manifests, or in for "-".
func readDocuments(in io.Reader, file string) ([]admission.Document, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	docs, err := admission.ReadDocuments(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return docs, nil
}

// reviewer answers a review.
type reviewer func(context.Context, *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error)

// reviewer returns the reviewer that the flags name, and what releases it.
func (o *options) reviewer(ctx context.Context, settings admission.PolicyOptions) (reviewer, func(), error) {
	if o.server != "" {
		r, err := newRemote(o.server, o.ca, o.tokenFile)
		return r, func() {}, err
	}
	return newLocal(ctx, o.dataDir, settings)
}
