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
//  3. No object with an image passes in silence: it is judged, exempt, or reported as not judged.
//
// # What it does not do
//
// It changes nothing, neither in the data directory nor on the server: every review is a dry run, so that nothing is
// fetched for it either.
package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/admission"
	"trow/storage"
)

// ErrDenied ends a check that found an image that may not run.
var ErrDenied = errors.New("denied")

// Settings returns the settings, from the flags of the command, the environment and the configuration files. The
// command has a flag for each setting of the policy.
type Settings func(*cobra.Command) (Config, error)

// Config is what a check needs of the settings of a server.
type Config struct {
	Policy admission.PolicyOptions
	Exempt []string // namespaces
	// Images returns what a server would ask of the facts in an index, in whose data directory it runs. nil: the index.
	Images func(x *storage.Index, dataDir string) (admission.Images, error)
}

// NewConfig returns a Config whose Images have a type of their own.
func NewConfig[I admission.Images](policy admission.PolicyOptions, exempt []string,
	images func(x *storage.Index, dataDir string) (I, error)) Config {
	return Config{policy, exempt, func(x *storage.Index, dataDir string) (admission.Images, error) {
		return images(x, dataDir)
	}}
}

// options are the flags of the command that are not settings.
type options struct {
	files     []string
	dataDir   string
	server    string
	ca        string
	tokenFile string
	exempt    []string
	output    string
}

// Command returns the command. Its errors are ErrDenied if an image may not run, or what kept it from finding out.
func Command(load Settings) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "check -f FILE",
		Short: "Check manifests against the policy: exit code 1 if an image may not run",
		Long: `check reviews every pod and workload in the files as the webhook would. It knows the images from the data
directory of a stopped server (--data-dir), or asks a running server (--server), whose settings count then.
Exit code 0: every image may run; 1: one is denied; 2: something could not be read or asked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.server == "" && o.dataDir == "" {
				return errors.New("neither --server nor --data-dir is set: name a running server by its URL with " +
					"--server, or the data directory of a stopped one with --data-dir")
			}
			c, err := load(cmd)
			if err != nil {
				return err
			}
			// the webhook never gets its objects
			exempt := slices.Concat(c.Exempt, o.exempt, []string{metav1.NamespaceSystem})
			review, done, err := o.reviewer(cmd.Context(), c)
			if err != nil {
				return err
			}
			defer done()
			switch o.output {
			case "table":
				return run(cmd, &o, exempt, review, &text{cmd.OutOrStdout()})
			case "json":
				return run(cmd, &o, exempt, review, &list{out: cmd.OutOrStdout(), All: []result{}})
			}
			return fmt.Errorf("output: %.40q: want table or json", o.output)
		},
	}
	f := cmd.Flags()
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "data" { // its name in earlier versions
			name = "data-dir"
		}
		return pflag.NormalizedName(name)
	})
	f.StringSliceVarP(&o.files, "filename", "f", nil,
		"file with manifests, YAML or JSON, or a directory with such files; - for standard input")
	f.StringVarP(&o.dataDir, "data-dir", "d", "", "data directory of a stopped server")
	f.StringVar(&o.server, "server", "", "URL of a running server")
	f.StringVar(&o.ca, "cacert", "", "with --server: file of the CA (PEM) that has signed the certificate of the "+
		"server")
	f.StringVar(&o.tokenFile, "token-file", "",
		"with --server: file with the token of its setting validate-token-file, or of a login (trow token)")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	f.StringSliceVar(&o.exempt, "exempt-namespace", nil,
		"namespaces that the webhook does not review, beside kube-system and the setting exempt-namespaces")
	new(admission.PolicyOptions).AddFlags(f) // load reads them
	cmd.MarkFlagsMutuallyExclusive("data-dir", "server")
	_ = cmd.MarkFlagRequired("filename") // the flag exists
	return cmd
}

// run reviews the files in order, and prints each object and what there is to say about it. It goes on after an error
// of a file, a document or an object, but not after one of the reviewer.
func run(cmd *cobra.Command, o *options, exempt []string, review reviewer, to printer) error {
	n := totals{to: to}
	var first, failed error // of those that are printed; of the reviewer
	report := func(err error) {
		n.add(result{Outcome: unread, Message: strings.Join(strings.Fields(err.Error()), " ")})
		first = cmp.Or(first, err)
	}
	each := func(file string, docs []admission.Document) {
		for _, d := range docs {
			if d.Err != nil {
				report(fmt.Errorf("%s:%d:%d: %w", file, d.Number, d.Line, d.Err))
			} else if failed == nil {
				if err := n.judge(cmd.Context(), file, d, exempt, review); errors.Is(err, errObject) {
					report(err)
				} else {
					failed = err
				}
			}
		}
	}
	for _, file := range o.files {
		if read(cmd.InOrStdin(), file, each, report); failed != nil {
			return failed
		}
	}
	if err := to.end(n); err != nil {
		return err
	}
	switch {
	case n.Unread > 1:
		return fmt.Errorf("%w; and %d more", first, n.Unread-1)
	case n.Unread == 1:
		return first
	case n.Denied > 0:
		return ErrDenied
	}
	return nil
}

// judge reviews one object, and prints what there is to say about it. Errors: the reviewer's.
func (n *totals) judge(ctx context.Context, file string, d admission.Document, exempt []string, review reviewer) error {
	r := result{File: file, Line: d.Line, Kind: d.Kind, Name: d.Name}
	switch {
	case slices.Contains(exempt, d.Namespace) && (d.Review != nil || len(d.NotJudged) > 0):
		r.Outcome, r.Message = exempted, "namespace "+d.Namespace
		n.add(r)
		return nil
	case d.Review != nil:
		resp, err := review(ctx, d.Review)
		if err != nil {
			return fmt.Errorf("%s: %w", r.where(), err)
		}
		n.add(r.judged(resp))
	case len(d.NotJudged) == 0:
		r.Outcome, r.Message = skipped, "has no images"
		n.add(r)
	}
	if len(d.NotJudged) > 0 {
		r.Outcome = unjudged
		r.Message = "not judged: " + strings.Join(d.NotJudged, ", ") + " may name images, and no pod template has them"
		n.add(r)
	}
	return nil
}

// reviewer answers a review.
type reviewer func(context.Context, *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error)

// reviewer returns the reviewer that the flags name, and what releases it.
func (o *options) reviewer(ctx context.Context, c Config) (reviewer, func(), error) {
	if o.server != "" {
		r, err := newRemote(o.server, o.ca, o.tokenFile)
		return r, func() {}, err
	}
	return newLocal(ctx, o.dataDir, c)
}
