// Package cluster is what the server asks of the Kubernetes API: to be called for every pod, to keep its
// certificates, and whose a token is.
//
// # Words
//
//   - configuration: the ValidatingWebhookConfiguration, by which the API server knows whom to ask about pods.
//   - to arm: to make that configuration. [Mode] says how: enforce has failurePolicy Fail, audit denies nothing.
//   - to disarm: to take it away, and to note on the ClusterRole that it is to stay away.
//   - exempt: a namespace whose pods the API server does not ask about.
//   - bundle: the certificates that clients are to trust, in PEM; see package tls.
//   - token: what a ServiceAccount proves its identity with, for one audience; see [Reviewer].
//
// # Invariants
//
//  1. Nothing is armed before the pod is ready: a Fail that nobody answers stops the cluster.
//  2. Nothing is armed with Fail while what this pod itself needs in order to start could be denied, or could not
//     be asked about: its own namespace, kube-system, nodes' system-node-critical DaemonSets, its volume's driver.
//     What is armed with Fail already stays so, since otherwise whoever may make a DaemonSet could disarm it.
//  3. The configuration is owned by the ClusterRole of the manifest, so it goes when the manifest goes.
//  4. It is not disarmed at shutdown: a registry that is down must not open the cluster.
//  5. Every object is written under the condition that nobody has changed it since it was read.
//  6. A token is believed if the API server has said so, for our audience, and not after its end. It is neither kept
//     nor told in an error.
//
// # What it does not do
//
// It judges no image, makes no certificate, and does not log: it tells its caller what happened. It does not decide who
// may do what; it only asks.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Names of objects in the cluster. The manifest has the same.
const (
	Name          = "trow"     // the configuration, the ClusterRole, the Service
	SecretName    = "trow-tls" // CA and leaf
	ConfigMapName = "trow-ca"  // the bundle, for nodes and whoever else wants to trust the registry
	CAKey         = "ca.crt"   // of the ConfigMap

	// modeAnnotation is on the ClusterRole, where applying the manifest again leaves it alone: "off" disarms. On
	// the configuration it says how it is armed.
	modeAnnotation = "trow.io/webhook"
	// whyAnnotation is on a configuration that is held back, and says why.
	whyAnnotation = "trow.io/held-back"
	// rotateAnnotation on the Secret asks for a new CA.
	rotateAnnotation = "trow.io/rotate-ca"
)

// Mode says how the webhook is armed.
type Mode string

// The modes.
const (
	Off     Mode = "off"     // not at all
	Audit   Mode = "audit"   // it is asked, and nothing is denied
	Enforce Mode = "enforce" // it is asked, and without its consent no pod starts
)

// ParseMode reads a mode. Error: it is none.
func ParseMode(s string) (Mode, error) {
	if m := Mode(s); slices.Contains([]Mode{Off, Audit, Enforce}, m) {
		return m, nil
	}
	return "", fmt.Errorf("%.80q is none of off, audit, enforce", s)
}

// Options say what is to be kept in the cluster. All but Exempt, Pod and Poll are required.
type Options struct {
	Client    Client
	Namespace string // of the Service, the Secret and the ConfigMap
	Pod       string // the process's own, whose readiness and volumes count; empty: Ready alone counts

	Mode   Mode
	Exempt []string // namespaces beside kube-system and the own one

	CA     func() []byte                   // the bundle as it is now
	Ready  func() bool                     // whether reviews would be answered
	Rotate func(ctx context.Context) error // begins the rotation of the CA

	// Notify is told what has changed; from one goroutine.
	Notify func(Event)

	// Poll is how often everything is compared with what it should be. 0 means 5 s. A change of the
	// configuration by somebody else is seen at once.
	Poll time.Duration
}

// Kind is what happened.
type Kind string

// The kinds of events.
const (
	Armed    Kind = "armed"     // the configuration is there; Mode tells how
	HeldBack Kind = "held back" // it is in audit although it should enforce; Why tells the reason
	Risk     Kind = "risk"      // it enforces although it would be held back now; Why tells the reason
	Restored Kind = "restored"  // somebody had changed or deleted the configuration
	Disarmed Kind = "disarmed"  // the configuration is not there, and is to stay away
	Told     Kind = "published" // the bundle has changed, and is in the ConfigMap and the configuration
	Failed   Kind = "failed"    // Err: told once for as long as it is the same
)

// Event tells what [Cluster.Run] did or found.
type Event struct {
	Kind Kind
	Mode Mode   // in force after it
	Why  string // see the kinds
	Err  error  // of Failed alone
}

// State is how things stand.
type State struct {
	Mode Mode   // in force: Off until it is armed
	Why  string // why that is not the one that was asked for; empty: it is
}

// Cluster keeps the objects in the cluster as they should be. Make one with [New]. Safe for concurrent use.
type Cluster struct {
	Options

	mu        sync.Mutex
	state     State
	published []byte // the bundle that everybody has been told of

	known   bool      // whether anything is known of the configuration
	failed  string    // the error told last
	risk    string    // the risk told last
	danger  string    // what deadlock found
	checked time.Time // when
}

// New makes a Cluster. It asks nothing yet.
func New(o Options) *Cluster {
	if o.Poll <= 0 {
		o.Poll = 5 * time.Second
	}
	why := "not ready yet"
	if o.Mode == Off {
		why = ""
	}
	return &Cluster{Options: o, state: State{Mode: Off, Why: why}}
}

// State returns how things stand.
func (c *Cluster) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Published tells whether a bundle is what everybody has been told of; see package tls.
func (c *Cluster) Published(bundle []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Equal(bundle, c.published)
}

// Run keeps everything as it should be until ctx is done; then it returns nil. Run must be called once.
func (c *Cluster) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { c.watch(ctx, changed) })
	defer wg.Wait()
	t := time.NewTicker(c.Poll)
	defer t.Stop()
	for {
		c.tell(ctx, c.settle(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-changed:
		}
	}
}

// callTimeout bounds what one round may take of the API server's time.
const callTimeout = 30 * time.Second

// settle makes everything as it should be, once.
func (c *Cluster) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.rotate(ctx); err != nil {
		return fmt.Errorf("the certificates' Secret: %w", err)
	}
	bundle := c.CA()
	if err := c.publish(ctx, bundle); err != nil {
		return fmt.Errorf("the CA's ConfigMap: %w", err)
	}
	if err := c.arm(ctx, bundle); err != nil {
		return fmt.Errorf("the webhook's configuration: %w", err)
	}
	c.mu.Lock()
	news := c.published != nil && !bytes.Equal(c.published, bundle)
	c.published = bundle
	c.mu.Unlock()
	if news {
		c.notify(Told, "")
	}
	return nil
}

// tell tells of an error once.
func (c *Cluster) tell(ctx context.Context, err error) {
	switch {
	case err == nil:
		c.failed = ""
	case ctx.Err() == nil && err.Error() != c.failed:
		c.failed = err.Error()
		c.Notify(Event{Kind: Failed, Mode: c.State().Mode, Err: err})
	}
}

func (c *Cluster) notify(kind Kind, why string) {
	c.Notify(Event{Kind: kind, Mode: c.State().Mode, Why: why})
}

// set notes how things stand, and tells it if it is new.
func (c *Cluster) set(kind Kind, mode Mode, why string) {
	c.mu.Lock()
	s := State{Mode: mode, Why: why}
	news := s != c.state || !c.known
	c.state, c.known = s, true
	c.mu.Unlock()
	if news {
		c.notify(kind, why)
	}
}

// errMissing is an object that the manifest has and the cluster has not.
var errMissing = errors.New("it is missing; apply the manifest again (trow manifest)")
