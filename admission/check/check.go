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
			return run(cmd, o.files, review)
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
	f.StringVar(&o.dataDir, "data-dir", "", "data directory of a stopped server")
	f.StringVar(&o.server, "server", "", "URL of a running server")
	f.StringVar(&o.ca, "cacert", "", "with --server: file of the CA (PEM) that has signed the certificate of the server")
	f.StringVar(&o.tokenFile, "token-file", "", "with --server: file with the token of its setting validate-token-file")
	new(admission.PolicyOptions).AddFlags(f) // Program.Policy reads them
	cmd.MarkFlagsMutuallyExclusive("data-dir", "server")
	cmd.MarkFlagsOneRequired("data-dir", "server")
	_ = cmd.MarkFlagRequired("filename") // the flag exists
	return cmd
}

// run reviews the files in order, and prints a line for each object and what there is to say about it.
func run(cmd *cobra.Command, files []string, review reviewer) error {
	out := cmd.OutOrStdout()
	denied, checked := 0, 0
	for _, file := range files {
		docs, err := readDocuments(cmd.InOrStdin(), file)
		if err != nil {
			return err
		}
		for _, d := range docs {
			where := fmt.Sprintf("%s:%d %s/%s", file, d.Line, d.Kind, d.Name)
			if d.Review == nil {
				fmt.Fprintf(out, "skipped  %s: has no images\n", where)
				continue
			}
			resp, err := review(cmd.Context(), d.Review)
			if err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
			checked++
			if !printVerdict(out, where, resp) {
				denied++
			}
		}
	}
	fmt.Fprintf(out, "%d checked, %d denied\n", checked, denied)
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

// printVerdict prints an answer, and reports whether the object is allowed. A server that does not enforce templates
// only warns of what the pods would be denied for; here such a warning is a denial.
func printVerdict(out io.Writer, where string, resp *admissionv1.AdmissionResponse) (allowed bool) {
	allowed = resp.Allowed && resp.AuditAnnotations["decision"] != admission.OutcomeWarned
	switch {
	case allowed:
		fmt.Fprintf(out, "allowed  %s\n", where)
	case resp.Result != nil && resp.Result.Message != "":
		fmt.Fprintf(out, "denied   %s: %s\n", where, resp.Result.Message)
	default:
		fmt.Fprintf(out, "denied   %s\n", where)
	}
	for _, w := range resp.Warnings {
		fmt.Fprintf(out, "         %s\n", w)
	}
	return allowed
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
