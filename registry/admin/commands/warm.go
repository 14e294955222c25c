package commands

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"trow/registry/admin"
	"trow/registry/platform"
	"trow/registry/service"
	"trow/registry/size"
)

// warmedAtOnce is how many images the server fetches at once for one command: each takes up to four downloads.
const warmedAtOnce = 3

// images are the flags with which a command gets the images of pods.
type images struct {
	cluster                 Cluster
	files                   []string
	running                 bool
	kubeconfig, kubecontext string
	platforms               []string
}

// addFlags adds the flags to a command.
func (i *images) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVarP(&i.files, "filename", "f", nil, "file with manifests (YAML or JSON) that name the images, or a "+
		"directory with such files; - for standard input")
	f.BoolVar(&i.running, "running", false, "the images of all pods of the cluster that have not ended")
	f.StringVar(&i.kubeconfig, "kubeconfig", "", "with --running: kubeconfig file (default: KUBECONFIG, then "+
		"~/.kube/config, then the pod's own account)")
	f.StringVar(&i.kubecontext, "context", "",
		"with --running: context of the kubeconfig file (default: the current one)")
	f.StringSliceVar(&i.platforms, "platform", nil, "OS/ARCH[/VARIANT] of images for several, or all; may be repeated "+
		"(default: those of the nodes with --running, else that of the server)")
	_ = cmd.RegisterFlagCompletionFunc("platform", cobra.FixedCompletions([]string{service.AllPlatforms, "linux/amd64",
		"linux/arm64"}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

// given reports whether the flags name images.
func (i *images) given() bool { return i.running || len(i.files) > 0 }

// list returns the images that arguments and flags name, each once.
func (i *images) list(cmd *cobra.Command, args []string) (all []string, err error) {
	if !slices.Contains(i.platforms, service.AllPlatforms) {
		if _, err := platform.ParseAll(i.platforms); err != nil {
			return nil, err
		}
	}
	all = slices.Clone(args)
	if len(i.files) > 0 {
		found, err := i.cluster.Images(cmd.InOrStdin(), i.files, func(text string) {
			fmt.Fprintln(cmd.ErrOrStderr(), printable(text))
		})
		if err != nil {
			return nil, fmt.Errorf("filename: %w", err)
		}
		all = append(all, found...)
	}
	if i.running {
		found, platforms, err := i.cluster.Running(cmd.Context(), i.kubeconfig, i.kubecontext)
		if err != nil {
			return nil, err
		}
		if all = append(all, found...); len(i.platforms) == 0 {
			i.platforms = platforms
		}
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == 0 {
		return nil, errors.New("no image is named; name some, or use -f FILE or --running")
	}
	return all, nil
}

// outcome is what became of one image.
type outcome struct {
	service.Warmed
	Error string `json:"error,omitempty"`
}

// warm has the server fetch images, and prints the progress of each on standard error. The outcomes are in the order of
// the images. Errors: those of the connection, by which no further image can succeed.
func (i *images) warm(cmd *cobra.Command, c *admin.Client, all []string, quiet bool) ([]outcome, error) {
	done := make([]outcome, len(all))
	var mu sync.Mutex // guards standard error
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(cmd.ErrOrStderr(), printable(fmt.Sprintf(format, args...)))
	}
	g, ctx := errgroup.WithContext(cmd.Context())
	g.SetLimit(warmedAtOnce)
	for n, image := range all {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			q := url.Values{"image": {image}, "platform": i.platforms}
			err := c.Run(ctx, "warm", q, progress(func(now service.Warming) {
				if !quiet && now.Here < now.Known {
					say("%s: %s of %s", image, size.Format(now.Here), size.Format(now.Known))
				}
			}), &done[n].Warmed)
			for _, note := range done[n].Notes {
				say("%s", note)
			}
			if err == nil {
				return nil
			}
			if _, ok := errors.AsType[admin.JobError](err); !ok || ctx.Err() != nil {
				return err
			}
			done[n].Image, done[n].Error = image, err.Error()
			say("%v", err) // it names the image
			return nil
		})
	}
	return done, g.Wait()
}

func (p Program) warmCommand() *cobra.Command {
	var o output
	i := images{cluster: p.Cluster}
	cmd := &cobra.Command{
		Use:   "warm [IMAGE...]",
		Short: "Fetch images of other registries into the cache, before nodes ask for them",
		Long: `warm has the server fetch images through its upstreams, with all that they consist of and their
signatures, and waits until they are here. IMAGE is named as in a pod: nginx is
docker.io/library/nginx:latest. -f takes the images of all pods and workloads in manifests, also
those of custom resources with pod templates. What is here already is not fetched again, so run it
again to continue. An image of the registry itself only has to be here.

In a pod of the manifest, which may not list the pods of the cluster:
  kubectl get pods -A -o yaml |
    kubectl -n kube-public exec -i trow-0 -- /trow warm -f -

Exit code: 0 if all images are here, 2 if some are not; each of those is named with the cause.`,
		Example: "  trow warm nginx:1.27 quay.io/team/app:2\n  trow warm -f pods.yaml --platform linux/amd64 " +
			"--platform linux/arm64\n  trow warm --running --server https://trow.example:31000",
	}
	t := p.target(cmd)
	i.addFlags(cmd)
	o.addFlags(cmd, "the digests")
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		all, err := i.list(cmd, args)
		if err != nil {
			return err
		}
		e, err := t.open(cmd)
		if err != nil {
			return err
		}
		done, err := i.warm(cmd, e.admin, all, o.quiet)
		if err != nil {
			return err
		}
		if err := printWarmed(cmd, o, done); err != nil {
			return err
		}
		return failed(done, "fetched")
	})
	return cmd
}

// failed returns an error if there are images that failed, which were named before.
func failed(all []outcome, what string) error {
	n := 0
	for _, o := range all {
		if o.Error != "" {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d of %s could not be %s", n, count(len(all), "image", ""), what)
}

func printWarmed(cmd *cobra.Command, o output, all []outcome) error {
	out := cmd.OutOrStdout()
	if o.json() {
		return printJSON(out, all)
	}
	list := table{head: []string{"IMAGE", "DIGEST", "SIZE", "FETCHED"}, right: " SIZE FETCHED "}
	var digests []string
	for _, w := range all {
		if w.Error == "" {
			digests = append(digests, w.Digest.String())
			list.add(w.Image, short(w.Digest), size.Format(w.Bytes), size.Format(w.Fetched))
		}
	}
	if o.quiet {
		return printLines(out, digests)
	}
	if len(list.rows) == 0 {
		return nil
	}
	return list.print(out, "")
}
