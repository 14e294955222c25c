// Package cluster is the server's side of the Kubernetes API: it registers the webhook, keeps the server's certificates
// in a Secret, publishes the CA, and has ServiceAccount tokens reviewed.
//
// # Words
//
//   - configuration: the ValidatingWebhookConfiguration, which tells the API server where to send reviews of pods.
//   - to arm: to fill that configuration with webhooks. [Mode] says how: enforce has failurePolicy Fail; audit denies
//     nothing.
//   - to disarm: to empty it, and to note on the ClusterRole that it must not be filled again.
//   - exempt: a namespace whose pods the API server does not send for review.
//   - probe: a request to the API server that shows whether it reaches the webhook.
//   - bundle: the CA certificates that clients trust, in PEM; see package tls.
//   - token: a ServiceAccount's proof of identity, issued for one audience; see [Reviewer].
//
// # Invariants
//
//  1. The webhook is armed only after the pod is ready, and with failurePolicy Fail only after the API server's own
//     answer to a probe has shown that it reaches the webhook: otherwise no pod starts.
//
//  2. The webhook is not armed with Fail while it could block something that this pod needs in order to start: pods in
//     its own namespace, in kube-system, of DaemonSets of class system-node-critical, of its volume's driver, of
//     webhooks that must approve this pod. A configuration that already has Fail keeps it; otherwise anyone who may
//     create a DaemonSet could disarm it.
//
//  3. The configuration is an object of the manifest, which has it without webhooks: applying the manifest again keeps
//     them, and deleting it deletes the configuration first. The server neither creates nor deletes it, and needs no
//     right to.
//
//  4. Shutting down does not disarm: a registry that is down must not open the cluster. The deletion of its namespace
//     does: what it deletes does not come back.
//
//  5. What other clients add to the configuration stays. What they change in our entries is put back, but only a few
//     times a minute, so that two controllers do not keep an API server busy.
//
//  6. Each write of an object is conditional on its not having changed since it was read.
//
//  7. A token is accepted only if the API server has accepted it for our audience, and not after it expires. Tokens are
//     neither kept nor part of an error or a log line.
//
//  8. Of several replicas one writes, see lead.go; each of them knows in which mode the webhook is armed, and answers
//     the probes of the others.
//
// # What it does not do
//
// It does not judge images or issue certificates. It does not decide what an identity may do; it only asks.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Annotations.
const (
	// modeAnnotation on the ClusterRole disarms if it is "off"; applying the manifest again does not touch it. On the
	// configuration it says in which mode the webhook is armed; "off": it is empty.
	modeAnnotation = "trow.io/webhook"
	// whyAnnotation on a configuration that is held back gives the reason.
	whyAnnotation = "trow.io/held-back"
	// rotateAnnotation on the Secret requests a new CA.
	rotateAnnotation = "trow.io/rotate-ca"
)

// Mode says how the webhook is armed.
type Mode string

// The modes.
const (
	Off     Mode = "off"     // not registered
	Audit   Mode = "audit"   // registered; it denies nothing
	Enforce Mode = "enforce" // registered; without its approval no pod starts
)

// Events, as they are logged. An event of kind failed has an error; the same error is logged once.
const (
	armed     = "armed"     // the configuration is filled
	heldBack  = "held back" // it is in audit mode although it should enforce; "why" has the reason
	risk      = "risk"      // it enforces, but would not be armed with Fail now; "why" has the reason
	restored  = "restored"  // another client had changed the configuration
	missing   = "missing"   // the configuration does not exist; "why" has the command that creates it
	disarmed  = "disarmed"  // the configuration is empty or does not exist, and will not be filled
	published = "published" // the bundle has changed, and is in the ConfigMap and the configuration
	failed    = "failed"
)

// State is the current state of the webhook.
type State struct {
	Mode Mode   // in force: Off until it is armed
	Why  string // why Mode is not the mode of the settings; empty if it is
}

// Cluster reconciles the objects in the cluster. Make one with [Open]. It is safe for concurrent use. A nil *Cluster
// stands for a server outside a cluster; Run, Denies, AnswerProbe, Describe and
// Collect accept it.
type Cluster struct {
	o Options

	mu        sync.Mutex // guards what follows, up to drift.restores
	state     State
	known     bool              // whether state comes from the cluster
	nodes     []string          // what keeps nodes from pulling by name, a line each
	published []byte            // the bundle that the last complete pass has written everywhere
	secret    secretValue       // of the probe under way
	risks     map[string]string // what may be wrong, by kind
	notes     map[string]string // what people should know, by kind
	follows   bool              // at the last look, another replica led

	leaving atomic.Bool // the namespace is being deleted, so the configuration stays empty

	// Only Run uses what follows, except drift.restores.
	term           term
	drift          drift
	probe          prober
	lastError      string               // the error logged last
	blocking       string               // result of the last search for deadlocks
	searchedAt     time.Time            // time of that search
	lacking        []string             // what the server may not list, of the search under way
	provisionersAt time.Time            // time of the last search for provisioners
	missedAt       time.Time            // when the configuration was missed first; zero while it exists
	reminded       map[string]time.Time // when an Event was created last, by reason
	mistake        string               // the problem of the settings that the last Event was about
	mistakeAt      time.Time            // when that Event was created
	nodesAt        time.Time            // when the Events about nodes were read last
	nodesError     string               // the error of that which was logged last
}

// New makes a Cluster. It sends no request yet. Client, Namespace, CA, Ready and Rotate of o must be set.
func New(o Options) *Cluster {
	if o.Poll <= 0 {
		o.Poll = 5 * time.Second
	}
	why := "not ready yet"
	if o.mode() == Off {
		why = ""
	}
	return &Cluster{o: o, state: State{Mode: Off, Why: why}, risks: map[string]string{}, notes: map[string]string{},
		reminded: map[string]time.Time{}}
}

// State returns the current state.
func (c *Cluster) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Denies reports whether denials of the webhook take effect: not while it is in audit mode. It is true for nil, where
// the webhook was registered by hand.
func (c *Cluster) Denies() bool { return c == nil || c.State().Mode != Audit }

// Store is where the server's certificates are kept; see package tls.
type Store interface {
	Load(ctx context.Context) (files map[string][]byte, version string, err error)
	Save(ctx context.Context, files map[string][]byte, version string) (bool, error)
	String() string
}

// Store returns the Secret with the server's certificates, nil outside a cluster.
func (c *Cluster) Store() Store {
	if c == nil {
		return nil // not a nil *Secret, which would be an interface that is not nil
	}
	return NewSecret(c.o.Client, c.o.Namespace)
}

// Published reports whether a bundle is the one that all clients in the cluster have; see package tls. Outside a
// cluster it is true.
func (c *Cluster) Published(bundle []byte) bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Equal(bundle, c.published)
}

// Run reconciles the objects until ctx is done; then it returns nil. It must be called once.
func (c *Cluster) Run(ctx context.Context) error {
	if c == nil {
		return nil
	}
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { c.watch(ctx, changed) })
	wg.Go(func() { c.watchNamespace(ctx) })
	defer wg.Wait()
	for {
		c.logError(ctx, c.reconcile(ctx))
		select {
		case <-ctx.Done():
			c.farewell(context.WithoutCancel(ctx))
			c.release(context.WithoutCancel(ctx))
			return nil
		case <-time.After(c.pause()):
		case <-changed:
		}
	}
}

// pause returns how long to wait for the next pass: Poll, or until the next probe if that is earlier.
func (c *Cluster) pause() time.Duration {
	if c.probe.proven || c.probe.since.IsZero() {
		return c.o.Poll
	}
	return min(c.o.Poll, max(time.Until(c.probe.next), probeFirst))
}

// reconcileTimeout bounds one pass, so that a hanging API server does not stop Run for longer.
const reconcileTimeout = 30 * time.Second

// reconcile runs one pass: CA rotation, ConfigMap, webhook configuration.
func (c *Cluster) reconcile(ctx context.Context) error {
	limit := reconcileTimeout
	if c.replicated() {
		limit = leaderTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if c.leaving.Load() { // the objects of the namespace may be gone already
		c.leave(ctx)
		return nil
	}
	c.reportSettings(ctx)
	c.readNodes(ctx)
	if leads, err := c.lead(ctx); err != nil {
		return err
	} else if !leads {
		c.remindOfLease(ctx)
		return c.observe(ctx)
	}
	if err := c.rotate(ctx); err != nil {
		return fmt.Errorf("Secret of the certificates: %w", err)
	}
	// One bundle for the whole pass: it counts as published only if each write of the pass had it.
	bundle := c.o.CA()
	if settled, err := c.publish(ctx, bundle); err != nil {
		return fmt.Errorf("ConfigMap of the CA: %w", err)
	} else if !settled {
		return nil
	}
	if settled, err := c.arm(ctx, bundle); err != nil {
		return fmt.Errorf("webhook configuration: %w", err)
	} else if !settled {
		return nil
	}
	c.mu.Lock()
	changed := c.published != nil && !bytes.Equal(c.published, bundle)
	c.published = bundle
	c.mu.Unlock()
	if changed {
		c.log(published, "")
	}
	return nil
}

// logError logs an error of a pass, once for as long as it stays the same.
func (c *Cluster) logError(ctx context.Context, err error) {
	switch {
	case err == nil:
		c.lastError = ""
	case ctx.Err() == nil && err.Error() != c.lastError:
		c.lastError = err.Error()
		c.line(c.o.Log.Error().Err(err), failed, "")
	}
}

// log logs an event, with the mode in force after it.
func (c *Cluster) log(event, why string) {
	line := c.o.Log.Info()
	switch event {
	case heldBack, risk, restored, missing:
		line = c.o.Log.Warn()
	}
	c.line(line, event, why)
}

func (c *Cluster) line(line *zerolog.Event, event, why string) {
	if why != "" {
		line.Str("why", why)
	}
	line.Str("event", event).Str("mode", string(c.State().Mode)).Msg("webhook")
}

// set sets the state, and logs the event, if there is one and the state has changed.
func (c *Cluster) set(event string, mode Mode, why string) {
	c.mu.Lock()
	s := State{Mode: mode, Why: why}
	changed := s != c.state || !c.known
	c.state, c.known = s, true
	c.mu.Unlock()
	if changed && event != "" {
		c.log(event, why)
	}
}

// errMissing is the error for an object of the manifest that the cluster does not have.
var errMissing = errors.New("not found; apply the manifest again (trow manifest)")
