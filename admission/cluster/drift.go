package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// Other controllers write to webhook configurations as well. Their labels, annotations and entries stay. Where they
// change our entries, known changes are tolerated, and others are put back, but not endlessly.

const (
	// fieldManager is the name under which the API server notes what this process has written.
	fieldManager = kube.Name
	// maxRestores is how often within restorePeriod the configuration is put back.
	maxRestores, restorePeriod = 5, time.Minute
	// enforcerLabel with the value "true" asks the admissions enforcer of AKS not to change a configuration.
	enforcerLabel = "admissions.enforcer/disabled"
)

// known are the expressions that a controller of the cluster's provider adds to namespace selectors: the admissions
// enforcer of AKS excludes the namespaces of the control plane. It has added more of them over time
// (https://github.com/Azure/AKS/issues/1771 and 4002, https://github.com/DataDog/datadog-agent/pull/19965).
var known = []metav1.LabelSelectorRequirement{
	{Key: "control-plane", Operator: metav1.LabelSelectorOpDoesNotExist},
	{Key: "control-plane", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"true"}},
	{Key: "kubernetes.azure.com/managedby", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"aks"}},
}

// merge returns the entries that a configuration should have: ours, in the order in which it has them, and those that
// are not named like ours. tolerated describes what was added to ours and stays; empty: nothing.
func merge(have, ours []validatingWebhook) (merged []validatingWebhook, tolerated string) {
	missing := slices.Clone(ours)
	for _, h := range have {
		i := slices.IndexFunc(missing, func(w validatingWebhook) bool { return w.Name == h.Name })
		switch {
		case i >= 0:
			w, keys := tolerate(h, missing[i])
			if keys != "" && w.Name == kube.WebhookName {
				tolerated = "the cluster excludes namespaces from the webhook by " + keys
			}
			merged = append(merged, w)
			missing = slices.Delete(missing, i, i+1)
		case !strings.HasSuffix(h.Name, ".trow.io"): // with the suffix it is one of another version
			merged = append(merged, h)
		}
	}
	return append(merged, missing...), tolerated
}

// tolerate returns our entry with the known expressions of an entry that another client has changed, and their keys.
func tolerate(have, ours validatingWebhook) (w validatingWebhook, keys string) {
	if have.NamespaceSelector == nil || ours.NamespaceSelector == nil {
		return ours, ""
	}
	in := func(list []metav1.LabelSelectorRequirement, e metav1.LabelSelectorRequirement) bool {
		return slices.ContainsFunc(list, func(o metav1.LabelSelectorRequirement) bool {
			return equality.Semantic.DeepEqual(o, e)
		})
	}
	selector := ours.NamespaceSelector.DeepCopy()
	missing := selector.MatchExpressions
	selector.MatchExpressions = nil
	var found []string
	for _, e := range have.NamespaceSelector.MatchExpressions {
		switch {
		case in(selector.MatchExpressions, e): // once is enough
		case in(missing, e):
			selector.MatchExpressions = append(selector.MatchExpressions, e)
			missing = slices.DeleteFunc(missing, func(o metav1.LabelSelectorRequirement) bool {
				return equality.Semantic.DeepEqual(o, e)
			})
		case in(known, e):
			selector.MatchExpressions = append(selector.MatchExpressions, e)
			found = append(found, fmt.Sprintf("%s %s %s", e.Key, e.Operator, strings.Join(e.Values, ",")))
		}
	}
	selector.MatchExpressions = append(selector.MatchExpressions, missing...)
	ours.NamespaceSelector = selector
	return ours, strings.TrimSpace(strings.Join(found, ", "))
}

// intent is what a configuration was written for. If it is still the same and the configuration differs, another client
// has changed it.
type intent struct {
	mode        Mode
	why, bundle string
}

// drift is what Run knows of the changes of other clients. restores is guarded by mu of Cluster, for the metrics.
type drift struct {
	written  intent      // of the configuration that was found as it should be, or written, last
	last     []time.Time // when it was put back, at most maxRestores
	refused  time.Time   // when it was last not put back
	restores int
}

// put writes a configuration if it is not as it should be, and reports whether it is now. It is not if another client
// has written it since it was read, or undoes what this process writes: then it is put back only from time to time.
// Errors: those of the API.
func (c *Cluster) put(ctx context.Context, have, want *configuration, goal intent) (bool, error) {
	d := &c.drift
	changed := !equality.Semantic.DeepEqual(have, want)
	restoring := changed && d.written == goal
	now := time.Now()
	if restoring {
		d.last = slices.DeleteFunc(d.last, func(t time.Time) bool { return now.Sub(t) >= restorePeriod })
		if len(d.last) == maxRestores {
			d.refused = now
			c.contest(ctx, have, want)
			return false, nil
		}
	}
	if saved, err := c.save(ctx, have, want); !saved || err != nil {
		return false, err
	}
	d.written = goal
	if restoring {
		d.last = append(d.last, now)
		c.mu.Lock()
		d.restores++
		c.mu.Unlock()
		c.log(restored, changes(have, want))
	}
	if now.Sub(d.refused) >= restorePeriod {
		c.report(riskContested, "")
	}
	return true, nil
}

// contest reports that another client undoes what this process writes. The API server may judge fewer pods than it
// should until the next time that the configuration is put back.
func (c *Cluster) contest(ctx context.Context, have, want *configuration) {
	text := fmt.Sprintf("another client keeps changing ValidatingWebhookConfiguration %s (%s), which is put back at "+
		"most %d times a minute, so images may run that should not; stop it, or exclude this object from it", kube.Name,
		changes(have, want), maxRestores)
	c.report(riskContested, text)
	c.remindOf(ctx, "WebhookContested", text)
}

// changes says in which fields two configurations differ, and which client has written the first.
func changes(have, want *configuration) string {
	var what []string
	if !equality.Semantic.DeepEqual(have.ObjectMeta, want.ObjectMeta) {
		what = append(what, "metadata")
	}
	ours := map[string]validatingWebhook{}
	for _, w := range want.Webhooks {
		ours[w.Name] = w
	}
	for _, h := range have.Webhooks {
		w, ok := ours[h.Name]
		if delete(ours, h.Name); ok {
			what = append(what, differences(h, w)...)
		} else {
			what = append(what, h.Name+" added")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		what = append(what, name+" removed")
	}
	return fmt.Sprintf("%.300s, %s", strings.Join(what, ", "), writer(have))
}

// differences returns the names of the fields in which two entries differ, each with the entry's name.
func differences(a, b validatingWebhook) (names []string) {
	fields := func(w validatingWebhook) (m map[string]any) {
		text, err := json.Marshal(w)
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			panic(err) // impossible: it came from JSON
		}
		return m
	}
	left, right := fields(a), fields(b)
	all := maps.Clone(left)
	maps.Copy(all, right)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !reflect.DeepEqual(left[key], right[key]) {
			names = append(names, a.Name+" "+key)
		}
	}
	return names
}

// writer says which other client has last written webhooks of a configuration, as far as the API server notes it.
func writer(have *configuration) string {
	var last *metav1.ManagedFieldsEntry
	for i, e := range have.ManagedFields {
		if e.Manager == fieldManager || e.FieldsV1 == nil ||
			!strings.Contains(e.FieldsV1.GetRawString(), `"f:webhooks"`) {
			continue
		}
		if last == nil || e.Time != nil && (last.Time == nil || last.Time.Before(e.Time)) {
			last = &have.ManagedFields[i]
		}
	}
	if last == nil {
		return "by a client that managedFields do not name, as a mutating policy"
	}
	return fmt.Sprintf("by %.100q", last.Manager)
}
