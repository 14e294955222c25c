package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/redact"
)

// Options are the settings of the server, and what the program adds to them.
type Options struct {
	// Listen is the address and port to listen on.
	Listen string
	// MaxConnections is the number of connections that may be open at once; see [connections]. 0 means as many as fit
	// into a quarter of the memory, at most 10000. It is lowered if the process may not open as many files.
	MaxConnections int
	// StallTimeout is how long a client may neither take nor send a byte while the server waits for it; then its
	// connection is closed. 0 means 60 s: longer than TCP needs to get over a lost route or a moved pod. A pull that
	// waits longer has failed for the person who looks at it.
	StallTimeout time.Duration
	// ShutdownDelay is how long the server goes on serving, not ready, after it was asked to stop: until all who choose
	// among several replicas have heard of it. 0: connections are accepted no longer, as is right for a single server.
	ShutdownDelay time.Duration
	// LogLevel is the lowest level that is logged: error, warn, info or debug.
	LogLevel string
	// DebugListen is the address and port of the listener for profiles. Empty: no listener.
	DebugListen string
	// ProbeListen is the address and port of a listener for probes alone. Empty: no listener.
	ProbeListen string
	// CORSOrigins are the origins, https://host[:port], whose pages may use the API in a browser.
	CORSOrigins []string
	// MetricsLogin protects /metrics by a login. The program applies it, because the server does not know logins.
	MetricsLogin bool

	// The fields below are set by the program. Handler must be set; the zero value of the others works.

	// Handler answers the requests.
	Handler http.Handler
	// Log gets the access log, one line per request, and the lines of Run. Its writer must not hold lines back.
	Log zerolog.Logger
	// Registerer gets the metrics trow_http_*. nil: they are counted, but not exported.
	Registerer prometheus.Registerer
	// TLSConfig makes the server speak TLS and redirect plain HTTP to it. nil: the server speaks plain HTTP.
	TLSConfig *tls.Config
	// Idle is how long a connection may stay open without a request. 0 means 3 min: most clients close an idle
	// connection after 90 s. The client must be the first to close, or it sends a request into a closed connection.
	Idle time.Duration
	// Vital are the paths that are answered on connections over the limit too, in addition to the probes.
	Vital []string
	// TokenPath is the path beside the API that pages of CORSOrigins may use. Empty: no path.
	TokenPath string
	// Prefix is a path below which all requests may come as well, as behind a proxy: /path. Empty: no prefix.
	Prefix string
	// Probes learns that the server stops. nil: there are no probes.
	Probes *Probes
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.Listen, "listen", "l", "127.0.0.1:8443",
		"address and port to listen on; :8443 for clients on other machines as well")
	fs.IntVar(&o.MaxConnections, "max-connections", 0, "number of connections that may be open at once; when a new "+
		"one comes, one without a request is closed, and if there is none, the new one is answered 503; 0: what fits "+
		"into a quarter of the memory limit, at most 10000")
	fs.DurationVar(&o.StallTimeout, "stall-timeout", time.Minute,
		"how long a transfer may make no progress before its connection is closed")
	fs.DurationVar(&o.ShutdownDelay, "shutdown-delay", 0,
		"how long to go on serving, with /readyz failing, after SIGTERM, "+
			"so that load balancers stop sending first; Kubernetes must wait half a minute longer before it kills "+
			"the process")
	fs.StringVar(&o.LogLevel, "log-level", "info", "lowest level that is logged: error, warn, info or debug")
	fs.StringVar(&o.DebugListen, "debug-listen", "", "address and port of a listener for profiles (/debug/pprof/), "+
		"preferably 127.0.0.1:6060; empty: none")
	fs.StringVar(&o.ProbeListen, "probe-listen", "",
		"address and port of a plain HTTP listener for /healthz and /readyz "+
			"alone, which no client of the registry can keep busy; empty: none")
	fs.StringSliceVar(&o.CORSOrigins, "cors-origins", nil,
		"origins, https://host[:port], whose pages may use the registry's API in a browser, with a login of their own")
	fs.BoolVar(&o.MetricsLogin, "metrics-login", false,
		"serve /metrics only to clients whose rules allow metrics")
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	switch {
	case o.MaxConnections < 0:
		return fmt.Errorf("max-connections: %d is too low; want at least 1, or 0 to derive it from the memory limit",
			o.MaxConnections)
	case o.StallTimeout < time.Second:
		return fmt.Errorf("stall-timeout: %s is too short; want at least 1s", o.StallTimeout)
	case o.ShutdownDelay < 0 || o.ShutdownDelay > time.Hour:
		return fmt.Errorf("shutdown-delay: %s is not a valid delay; want 0s to 1h", o.ShutdownDelay)
	}
	if err := checkOrigins(o.CORSOrigins); err != nil {
		return err
	}
	_, err := o.level()
	return err
}

// Logger returns the program's logger, which writes lines of JSON without secrets of robots to w. Errors: log-level is
// invalid.
func (o *Options) Logger(w io.Writer) (zerolog.Logger, error) {
	level, err := o.level()
	if err != nil {
		return zerolog.Nop(), err
	}
	return zerolog.New(redact.Writer(w)).Level(level).With().Timestamp().Logger(), nil
}

func (o *Options) level() (zerolog.Level, error) {
	level, err := zerolog.ParseLevel(o.LogLevel)
	if err != nil || level == zerolog.NoLevel {
		return level, fmt.Errorf("log-level: %q: want error, warn, info or debug", o.LogLevel)
	}
	return level, nil
}

// Open returns the program's logger, which writes to w, and the listeners; see Logger and OpenListeners.
func (o *Options) Open(w io.Writer) (log zerolog.Logger, l, debug net.Listener, err error) {
	if log, err = o.Logger(w); err != nil {
		return log, nil, nil, err
	}
	l, debug, err = o.OpenListeners()
	return log, l, debug, err
}

// OpenListeners opens the listener of the server and the one for profiles, which is nil if DebugListen is empty. The
// caller closes both. Errors name the setting.
func (o *Options) OpenListeners() (l, debug net.Listener, err error) {
	if l, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, nil, listenError("listen", err)
	}
	if o.DebugListen == "" {
		return l, nil, nil
	}
	if debug, err = net.Listen("tcp", o.DebugListen); err != nil {
		_ = l.Close() // nothing was accepted on it yet
		return nil, nil, listenError("debug-listen", err)
	}
	return l, debug, nil
}

// listenError names the setting of a listener that could not be opened, and the remedy.
func listenError(setting string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		remedy = "; another process listens there: stop it, or set --" + setting + " to another port"
	case errors.Is(err, syscall.EACCES):
		remedy = "; ports below 1024 need root or CAP_NET_BIND_SERVICE: set --" + setting + " to a higher port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		remedy = "; this machine does not have that address: set --" + setting + " to one of its own"
	}
	return fmt.Errorf("%s: %w%s", setting, err, remedy)
}

// CloseListeners closes listeners, of which some may be nil or closed.
func CloseListeners(all ...net.Listener) {
	for _, l := range all {
		if l != nil {
			_ = l.Close() // the server that used it has reported its errors
		}
	}
}

// Loopback reports whether only this machine can connect to a listener on address, which has the form host:port. A host
// that is not known is not a loopback one.
func Loopback(address string) bool {
	a, err := net.ResolveTCPAddr("tcp", address)
	return err == nil && a.IP.IsLoopback() // an empty host is every address of the machine, and no IP
}
