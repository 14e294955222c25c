package cluster

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// A probe is an update of ConfigMap trow-ca, as a dry run, that carries a random value. The configuration makes the API
// server send it to this process or another replica, which denies it: see [Cluster.AnswerProbe]. Only the API server's
// answer to our own request proves that it reaches the webhook; that a review arrives does not, because any client may
// send one.

const (
	// probeSentence is what a probe is denied with.
	probeSentence = "the API server reaches the webhook of Trow, which is what this update was to find out"
	// probeDenial is how the API server passes that on (statuserror.go of its package webhook/errors).
	probeDenial = `admission webhook "` + kube.ProbeName + `" denied the request: ` + probeSentence
	// probeFirst and probeLast are the shortest and the longest time between two probes. A new configuration reaches
	// the webhooks of the API server after some 100 ms.
	probeFirst, probeLast = 200 * time.Millisecond, time.Minute
	// probeGrace is how long probes may fail before that is reported.
	probeGrace = 10 * time.Second
)

// prober is what Run knows of its probes.
type prober struct {
	proven  bool          // the API server's answer to a probe was our denial
	trusted bool          // the configuration had Fail: that it was reached is taken for granted
	fails   bool          // probes have failed for probeGrace
	since   time.Time     // time of the first probe; zero before it
	next    time.Time     // time of the next probe
	pause   time.Duration // before the next probe
	outcome string        // of the last probe, for people
}

// secretValue is the value of the probe under way, which [Cluster.AnswerProbe] reads.
type secretValue struct {
	value   string // empty: no probe is under way
	arrived bool   // a review with the value has arrived
}

// AnswerProbe returns the sentence with which a review is denied whose object carries this value, if that is the value
// of the probe under way, or of a probe of another replica; otherwise it returns "". It compares in constant time.
func (c *Cluster) AnswerProbe(value string) string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.secret.value != "" && subtle.ConstantTimeCompare([]byte(value), []byte(c.secret.value)) == 1:
		c.secret.arrived = true
	case !c.signed(value):
		return ""
	}
	return probeSentence
}

// probeValue returns the value of a new probe: random, because the API server's audit log may show it. The Service may
// lead the API server to another replica; that one knows by the signature that a replica has sent the probe. A value
// that is used again has no effect but that the update is denied, and proves nothing to anyone.
func (c *Cluster) probeValue() string {
	value := rand.Text()
	if mac := c.sign(value); mac != "" {
		value += "." + mac
	}
	return value
}

// signed reports whether a value of a probe has the signature of a replica.
func (c *Cluster) signed(value string) bool {
	text, mac, ok := strings.Cut(value, ".")
	if !ok || len(text) > maxProbeText {
		return false
	}
	want := c.sign(text)
	return want != "" && subtle.ConstantTimeCompare([]byte(mac), []byte(want)) == 1
}

// maxProbeText bounds what is signed for others, who may send anything.
const maxProbeText = 64

// sign returns the signature of a text by the key that all replicas have; empty without replicas.
func (c *Cluster) sign(text string) string {
	if !c.replicated() || c.o.Key == nil {
		return ""
	}
	key, err := c.o.Key("probe")
	if err != nil {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

// prove sends a probe if one is due, and the configuration makes the API server call the webhook for it. It updates
// c.probe.
func (c *Cluster) prove(ctx context.Context, have *configuration, bundle []byte) {
	p := &c.probe
	now := time.Now()
	if p.proven || c.o.mode() != Enforce || now.Before(p.next) || !c.probes(have, bundle) {
		return
	}
	if p.since.IsZero() {
		p.since, p.pause = now, probeFirst
	}
	p.proven, p.outcome = c.probeOnce(ctx)
	if p.proven {
		p.fails = false
		c.note(noteProven, c.proof(ctx))
		return
	}
	p.next = time.Now().Add(p.pause)
	p.pause = min(2*p.pause, probeLast)
	p.fails = p.fails || time.Since(p.since) >= probeGrace
}

// probes reports whether a configuration has the entry of the probe as it should be.
func (c *Cluster) probes(have *configuration, bundle []byte) bool {
	i := slices.IndexFunc(have.Webhooks, func(w validatingWebhook) bool { return w.Name == kube.ProbeName })
	return i >= 0 && string(have.Webhooks[i].ClientConfig.CABundle) == string(bundle)
}

// unproven says why the webhook does not enforce, empty if the API server reaches it. The text changes only with the
// outcome, because it is written to the configuration.
func (c *Cluster) unproven() string {
	p := &c.probe
	switch {
	case p.proven:
		return ""
	case !p.fails:
		return "the API server has not reached the webhook yet"
	}
	return fmt.Sprintf("the API server has not shown that it reaches the webhook (Service %s/%s, port 8443 of its "+
		"pod); last probe: %s; likely causes: a firewall between control plane and nodes without TCP 8443 (private "+
		"GKE clusters), a control plane outside the pod network (EKS with an overlay network), a NetworkPolicy, a "+
		"proxy of the API server without NO_PROXY for .svc, or validate-token-file or validate-client-ca without "+
		"that credential in the API server; probed again at least every minute", c.o.Namespace, kube.Name, p.outcome)
}

// probeOnce sends one probe, and returns whether it proves that the API server reaches the webhook, and its outcome.
func (c *Cluster) probeOnce(ctx context.Context) (proven bool, outcome string) {
	// The API server waits for the webhook that long; a second more is for the rest of the request.
	ctx, cancel := context.WithTimeout(ctx, (timeout+1)*time.Second)
	defer cancel()
	m, err := c.o.Client.ConfigMaps(c.o.Namespace).Get(ctx, kube.ConfigMapName, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Sprintf("cannot read ConfigMap %s: %.200s", kube.ConfigMapName, err)
	}
	value := c.probeValue()
	c.setSecret(value)
	defer c.setSecret("")
	m.Annotations = with(m.Annotations, kube.ProbeAnnotation, value)
	started := time.Now()
	_, err = c.o.Client.ConfigMaps(c.o.Namespace).Update(ctx, m,
		metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: fieldManager})
	return proves(err), c.outcome(err, value, time.Since(started) >= timeout*time.Second)
}

func (c *Cluster) setSecret(value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secret = secretValue{value: value}
}

// proves reports whether an error is the answer of the API server that passes on our denial.
func proves(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code == 403 && status.Status().Message == probeDenial
}

// outcome describes a probe. slow: it took as long as the API server waits for a webhook.
func (c *Cluster) outcome(err error, value string, slow bool) string {
	c.mu.Lock()
	arrived := c.secret.arrived
	c.mu.Unlock()
	switch {
	case proves(err):
		return "denied by the webhook"
	case err != nil && !apierrors.IsConflict(err):
		// An answer may repeat the object, and with it the value.
		return fmt.Sprintf("the API server answered: %.200s", strings.ReplaceAll(err.Error(), value, "(the value)"))
	case arrived:
		return "a review arrived, and its answer did not get back to the API server"
	case slow:
		return fmt.Sprintf("no review arrived within %d s, as when packets are dropped", timeout)
	}
	return "no review arrived, and the API server did not wait for one, as when a connection is refused"
}

// proof says by which of the API servers the webhook was reached: the one that had the probe.
func (c *Cluster) proof(ctx context.Context) string {
	// The API servers of a cluster keep their addresses in this object. Not all clusters let us read it.
	slice, err := c.o.Client.EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return "reached by the API server"
	}
	servers := 0
	for _, e := range slice.Endpoints {
		if e.Conditions.Ready == nil || *e.Conditions.Ready {
			servers += len(e.Addresses)
		}
	}
	if servers < 2 {
		return "reached by the API server"
	}
	return fmt.Sprintf("reached by one of %d API servers; the others were not tried", servers)
}
