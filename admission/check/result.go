package check

import (
	"encoding/json"
	"fmt"
	"io"

	admissionv1 "k8s.io/api/admission/v1"

	"trow/admission"
)

// The outcomes of a check.
const (
	allowed  = "allowed"
	denied   = "denied"
	skipped  = "skipped" // the object has no images
	exempted = "exempt"  // it is in a namespace that the webhook does not review
	unjudged = "warning" // it may have images in a place that is not known
	unread   = "error"   // the file or the document cannot be read
)

// result is what the check says of one object, or of one that cannot be read.
type result struct {
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"`
	Kind     string   `json:"kind,omitempty"`
	Name     string   `json:"name,omitempty"`
	Outcome  string   `json:"outcome"`
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

func (r *result) where() string { return fmt.Sprintf("%s:%d %s/%s", r.File, r.Line, r.Kind, r.Name) }

// judged returns the result with an answer. A server that does not enforce templates only warns of what the pods would
// be denied for; here such a warning is a denial.
func (r result) judged(resp *admissionv1.AdmissionResponse) result {
	r.Outcome, r.Warnings = denied, resp.Warnings
	if resp.Allowed && resp.AuditAnnotations["decision"] != admission.OutcomeWarned {
		r.Outcome = allowed
	} else if resp.Result != nil {
		r.Message = resp.Result.Message
	}
	return r
}

// totals counts the results of a run. Checked are those that were allowed or denied.
type totals struct {
	to printer

	Checked  int `json:"checked"`
	Denied   int `json:"denied"`
	Exempt   int `json:"exempt"`
	Unjudged int `json:"notJudged"`
	Unread   int `json:"errors"`
}

// add counts and prints a result.
func (n *totals) add(r result) {
	switch r.Outcome {
	case allowed:
		n.Checked++
	case denied:
		n.Checked++
		n.Denied++
	case exempted:
		n.Exempt++
	case unjudged:
		n.Unjudged++
	case unread:
		n.Unread++
	}
	n.to.print(r)
}

// printer prints results.
type printer interface {
	print(r result)
	end(n totals) error
}

// text prints for people, a line for each object.
type text struct{ out io.Writer }

func (t *text) print(r result) {
	line := fmt.Sprintf("%-8s", r.Outcome)
	if r.File != "" {
		line += " " + r.where()
		if r.Message != "" {
			line += ":"
		}
	}
	if r.Message != "" {
		line += " " + r.Message
	}
	fmt.Fprintln(t.out, line)
	for _, w := range r.Warnings {
		fmt.Fprintf(t.out, "         %s\n", w)
	}
}

func (t *text) end(n totals) error {
	others := ""
	for _, c := range []struct {
		n    int
		what string
	}{{n.Exempt, "exempt"}, {n.Unjudged, "not judged"}, {n.Unread, "not read"}} {
		if c.n > 0 {
			others += fmt.Sprintf(", %d %s", c.n, c.what)
		}
	}
	_, err := fmt.Fprintf(t.out, "%d checked, %d denied%s\n", n.Checked, n.Denied, others)
	return err
}

// list prints for programs, when all is known.
type list struct {
	out io.Writer
	All []result `json:"results"`
	totals
}

func (l *list) print(r result) { l.All = append(l.All, r) }

func (l *list) end(n totals) error {
	l.totals = n
	e := json.NewEncoder(l.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(l)
}
