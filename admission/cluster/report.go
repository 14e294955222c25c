package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Kinds of risks: what may be wrong with a webhook that is registered. They are values of a label of the metrics.
const (
	riskDeadlock    = "deadlock"    // it enforces, but would not be armed with Fail now
	riskUnproven    = "unproven"    // it enforces, and the API server does not reach it
	riskContested   = "contested"   // another client undoes what this process writes
	riskProvisioner = "provisioner" // what makes nodes may need a verdict in order to start
	riskRights      = "rights"      // the server may not look for what could lock the cluster
	riskLease       = "lease"       // no replica may keep the webhook in order
	riskNamespace   = "namespace"   // the server may not see that its namespace is being deleted
)

var risks = []string{riskContested, riskDeadlock, riskLease, riskNamespace, riskProvisioner, riskRights, riskUnproven}

// Kinds of notes: what people should know, and need not change.
const (
	noteProven    = "proven"    // by which API server the webhook was reached
	noteTolerated = "tolerated" // what another controller has excluded
)

// report sets the text of a risk; empty if it does not exist. A text that is new is logged.
func (c *Cluster) report(kind, text string) {
	if c.change(c.risks, kind, text) && text != "" {
		c.log(risk, text)
	}
}

// note sets the text of a note.
func (c *Cluster) note(kind, text string) { c.change(c.notes, kind, text) }

func (c *Cluster) change(in map[string]string, kind, text string) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed = in[kind] != text
	if in[kind] = text; text == "" {
		delete(in, kind)
	}
	return changed
}

// Check reports whether the webhook is in the mode of the settings and takes effect, and describes its state in one
// line, for the readiness endpoint. Outside a cluster there is no line.
func (c *Cluster) Check() (ok bool, text string) {
	if c == nil {
		return true, ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	text = strings.TrimSpace(fmt.Sprintf("webhook %s %s", s.Mode, s.Why))
	if s.Mode != Off {
		for _, kind := range slices.Sorted(maps.Keys(c.notes)) {
			text += "; " + c.notes[kind]
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(c.risks)) {
		if s.Mode != Off || kind == riskLease { // which may be why it is off
			text += "; risk: " + c.risks[kind]
		}
	}
	return s.Mode == c.o.mode() && c.risks[riskContested] == "" && c.risks[riskUnproven] == "" &&
		c.risks[riskLease] == "", text
}

// remind is the time between two Events with the same reason: the API server keeps Events for an hour.
const remind = time.Hour

// maxEvent bounds the text of an Event, in bytes, as the API server does.
const maxEvent = 1024

// remindOf creates an Event about the pod, unless one with this reason was created within an hour. An Event that cannot
// be created is logged.
func (c *Cluster) remindOf(ctx context.Context, reason, text string) {
	now := time.Now()
	if last, ok := c.reminded[reason]; c.o.Pod == "" || ok && now.Sub(last) < remind {
		return
	}
	c.reminded[reason] = now
	if len(text) > maxEvent {
		text = strings.ToValidUTF8(text[:maxEvent-3], "") + "..."
	}
	if err := c.warn(ctx, reason, "Arm", text, now); err != nil {
		c.line(c.o.Log.Error().Err(fmt.Errorf("create Event %s: %w", reason, err)), failed, "")
	}
}
