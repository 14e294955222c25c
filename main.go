// Trow is an OCI registry that runs inside a Kubernetes cluster, and the admission webhook that decides which images
// may run there: one process, one listener, one index of what the registry holds.
//
// This file has the order in which the parts are opened, every path of the process, and the list of commands. Each part
// lives in a package of its own, with its settings, loops, metrics and commands; only this package knows them all.
package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"trow/admission"
	"trow/admission/check"
	"trow/admission/cluster"
	"trow/manifests"
	"trow/manifests/kube"
	"trow/manifests/node"
	"trow/manifests/node/credential"
	"trow/registry"
	"trow/registry/admin/commands"
	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/bench"
	"trow/registry/server"
	"trow/registry/service"
	"trow/registry/settings"
	trowtls "trow/tls"
)

// version is the release that this is, or precedes.
const version = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program, for main and for tests. It returns the exit code; see [commands.Execute].
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	return commands.Execute(ctx, root, check.ErrDenied, bench.ErrFailed, settings.ErrInvalid)
}

// newRoot returns the program with all of its commands.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use: "trow", Version: server.Build("trow", version),
		Short: "An OCI registry inside a Kubernetes cluster, and the webhook that decides which images may run there",
	}
	root.SetVersionTemplate("{{.Version}}\n")
	start := &cobra.Command{Use: "serve", Short: "Run the registry and the webhook", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return settings.Start(cmd.Flags(), new(options).parts(), cluster.OpenShelf,
				func(f *settings.Files) error { return serve(cmd, f) })
		}}
	settings.Register(start.Flags(), new(options).parts()...)
	root.AddCommand(settings.WithConfig(start),
		settings.WithConfig(check.Command(func(cmd *cobra.Command) (check.Config, error) {
			o, err := load(cmd)
			return check.NewConfig(o.policy, o.cluster.ExemptNamespaces, o.registry.Judged), err
		})),
		settings.Command(new(options).parts()...), settings.ConfigCommand(func(cmd *cobra.Command) error {
			_, err := load(cmd)
			return err
		}), settings.Version(root.Version), manifests.Command(version), node.Command(), credential.Command(),
		bench.Command())
	root.AddCommand(append(cluster.Commands(), commands.New(registrySettings, check.Cluster{}).Commands()...)...)
	return root
}

// options are the settings of all parts.
type options struct {
	server   server.Options
	registry service.Options
	tls      trowtls.Options
	cluster  cluster.Options
	policy   admission.PolicyOptions
	callers  admission.CallersOptions
}

func (o *options) parts() []settings.Part {
	return []settings.Part{&o.server, &o.registry, &o.tls, &o.cluster, &o.policy, &o.callers}
}

// load returns the settings, from the configuration file, the environment and the flags of a command.
func load(cmd *cobra.Command) (*options, error) {
	o := &options{}
	return o, settings.LoadParts(cmd.Flags(), func() {
		login := &o.registry.Auth
		login.ClientCA, login.AccessReview = o.tls.ClientCA != "", o.cluster.AccessReview
		login.Loopback, login.PlainHTTP = server.Loopback(o.server.Listen), o.tls.NoTLS
		o.cluster.User, o.cluster.NoTLS, o.cluster.Engines = login.User, o.tls.NoTLS, o.registry.Data.Hosts()
		login.User = o.cluster.LoginUser()
	}, o.parts()...)
}

// registrySettings returns the settings of the registry, for the commands that work on its data or on its server.
func registrySettings(cmd *cobra.Command) (*service.Options, error) {
	o, err := load(cmd)
	return &o.registry, err
}

// serve opens the parts, each after those that it needs, and runs them until the command's context is done.
func serve(cmd *cobra.Command, files *settings.Files) error {
	defer server.TuneMemory()()
	o, err := load(cmd)
	if err != nil {
		return err
	}
	log, listener, profiles, err := o.server.Open(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer server.CloseListeners(listener, profiles)
	o.policy.Complete(kube.LocalNames(listener.Addr().(*net.TCPAddr).Port, kube.Inside()))
	policy, err := admission.NewPolicy(o.policy)
	if err != nil {
		return err
	}
	probes, keeper := &server.Probes{}, (*trowtls.Keeper)(nil) // without TLS, keeper stays nil
	o.cluster.Log, o.cluster.Ready, o.cluster.Settings = log, probes.Ready, files.Problem
	o.cluster.Use(func() cluster.Keeper { return keeper })
	hook, reviewer, err := cluster.Open(o.cluster) // nil outside a cluster
	if err != nil {
		return err
	}
	if err := o.cluster.Login(cmd.Context(), &o.registry.Auth.User, &o.registry.Auth.Password); err != nil {
		return err
	}
	o.registry.Log, o.registry.Names, o.registry.Files, o.registry.Cluster = log, o.policy.Names, files, o.cluster.API()
	o.registry.Limit.MaxRequests = o.server.Requests(o.registry.Limit.MaxRequests)
	o.registry.Auth.Certificate = o.tls.Certificates(&keeper, trowtls.ForClient)
	o.registry.Platforms = policy.Platforms()
	o.registry.Auth.Reviewer, o.registry.Auth.Accesses, o.registry.Auth.Program = reviewer, reviewer, kube.Program()
	reg, err := service.Open(o.registry) // locks the data directory, before the certificates are written into it
	if err != nil {
		return err
	}
	defer reg.Close()
	o.tls.Log, o.tls.Names, o.tls.Dir = log, append(kube.CertificateNames(), o.policy.Names...), o.registry.Data.DataDir
	o.tls.Published, o.tls.Wait, o.tls.ReadOnly = hook.Published, hook != nil, reg.ReadOnly()
	if keeper, err = trowtls.Open(cmd.Context(), hook.Store(), o.tls); err != nil {
		return err
	}
	o.callers.Log, o.callers.Certificate = log, o.tls.Certificates(&keeper, trowtls.ForCaller)
	o.callers.Refused = func(r *http.Request, why string) { reg.Audit().Refuse(r, "validate", why) }
	callers, err := admission.NewCallers(o.callers)
	if err != nil {
		return err
	}
	reviews, metrics, webhook := admission.NewMetrics(), prometheus.NewRegistry(), server.NewPending(admission.Loading)
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		reg, reviews, keeper, hook)
	o.server.Log, o.server.Registerer, o.server.Probes, o.server.TLSConfig = log, metrics, probes, keeper.Config()
	o.server.Vital, o.server.TokenPath = []string{"/validate", "/validate-image"}, auth.TokenPath
	o.server.Prefix = o.registry.Auth.Prefix()
	o.server.Handler = routes(o, probes, reg, callers.Protect(server.Route("validate", webhook)), keeper,
		promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	front, err := server.New(o.server)
	if err != nil {
		return err
	}

	g, ctx := errgroup.WithContext(cmd.Context())
	g.Go(func() error { return front.Run(ctx, listener) })
	g.Go(func() error { return o.server.ServeProbes(ctx) })
	g.Go(func() error { return reg.ServeSocket(ctx) })
	g.Go(func() error { return server.ServeAuxiliary(ctx, profiles, server.Profiles(), nil) })
	g.Go(func() error {
		if _, err := reg.Load(ctx); err != nil {
			return err
		}
		webhook.Set(admission.New(admission.Options{Images: reg.Images(), Policy: policy, Log: log, Metrics: reviews,
			Hints: admission.NewHints(o.callers, callers, reg.Guard().Reads), Probe: hook.AnswerProbe,
			Bodies: server.ReserveBodies(), Audit: func() bool { return !hook.Denies() },
			Observe: func(ctx context.Context, d admission.Decision) { record(ctx, reg.Audit(), d, callers) }}))
		probes.Add(append(reg.Checks(), hook.Check, hook.NodesCheck, o.policy.LoopbackCheck(kube.Inside()))...)
		probes.SetReady(true)
		welcome(cmd.OutOrStdout(), o, listener, reg, policy, keeper)
		for _, run := range []func(context.Context) error{reg.Run, callers.Run, keeper.Run, hook.Run} {
			g.Go(func() error { return run(ctx) })
		}
		reg.Follow(ctx, func() (*service.Options, error) { return registrySettings(cmd) })
		return nil
	})
	return g.Wait()
}

// routes are all paths of the listener.
func routes(o *options, probes *server.Probes, reg *service.Service, webhook http.Handler, keeper *trowtls.Keeper,
	metrics http.Handler) http.Handler {
	if o.server.MetricsLogin {
		metrics = reg.Guard().Protect(auth.Metrics, metrics)
		probes.Details = func(r *http.Request) bool { return reg.Guard().Permits(r, auth.Metrics) }
	}
	r := chi.NewRouter()
	r.Get("/healthz", probes.ServeHealth)
	r.Get("/readyz", probes.ServeReady)
	r.Get("/ca.crt", keeper.ServeCA)
	r.Handle("/metrics", metrics)
	r.Handle("/validate", webhook)
	r.Handle("/validate-image", webhook) // the path of earlier versions
	r.HandleFunc(auth.TokenPath, reg.Guard().ServeToken)
	r.Handle("/admin/*", reg.Guard().Protect(auth.Admin, reg.Administration()))
	r.Handle("/v2", reg.API())
	r.Handle("/v2/*", reg.API())
	r.MethodNotAllowed(server.MethodNotAllowed(reg.API()))
	r.NotFound(registry.OldPaths(reg.API(),
		server.NotFound("the registry is at /v2/, the webhook at /validate, the CA at /ca.crt")))
	return r
}

// record writes a decision of the webhook to the audit log.
func record(ctx context.Context, log *audit.Log, d admission.Decision, c *admission.Callers) {
	log.Record(ctx, audit.Event{What: audit.Verdict, Outcome: audit.Outcome(d.Outcome()), User: d.User, Kind: "cluster",
		From: audit.From(server.RemoteAddr(ctx)), Action: "validate", Authenticated: c.Authenticate(),
		Reason: d.Skipped, Object: audit.Object{Kind: d.Kind, Namespace: d.Namespace, Name: d.Name, UID: d.UID,
			Operation: d.Operation, DryRun: d.DryRun, Images: d.Images, Denied: d.Denied, Fetching: d.Fetching}})
}

// welcome prints what runs, and what to do next.
func welcome(out io.Writer, o *options, l net.Listener, reg *service.Service, p *admission.Policy, k *trowtls.Keeper) {
	at := l.Addr().(*net.TCPAddr)
	w := server.Welcome{Version: version, Addr: at, Scheme: k.Scheme(), DataDir: o.registry.Data.DataDir,
		Names: o.policy.Names, MayRun: p.Summary(), CAFile: k.CAFile(), SkopeoFlag: k.SkopeoFlag()}
	cluster := kube.Inside() || o.cluster.Webhook != ""
	w.Quiet = cluster || reg.ReadOnly()
	w.Data, w.Anonymous = reg.Summary()
	w.Host = o.policy.Host(at.Port, cluster)
	w.Trust = k.Summary(w.Host)
	w.Print(out)
}
