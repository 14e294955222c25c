package check

import (
	"encoding/json"
	"fmt"
	"io"

	admissionv1 "k8s.io/api/admission/v1"

	"trow/admission"
)

// result is what the check says of one object.
type result struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Kind     string   `json:"kind"`
	Name     string   `json:"name"`
	Outcome  string   `json:"outcome"` // allowed, denied, or skipped: it has no images
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

func (r *result) where() string { return fmt.Sprintf("%s:%d %s/%s", r.File, r.Line, r.Kind, r.Name) }

// judge takes over an answer. A server that does not enforce templates only warns of what the pods would be denied for;
// here such a warning is a denial.
func (r *result) judge(resp *admissionv1.AdmissionResponse) {
	r.Outcome, r.Warnings = "denied", resp.Warnings
	if resp.Allowed && resp.AuditAnnotations["decision"] != admission.OutcomeWarned {
		r.Outcome = "allowed"
	} else if resp.Result != nil {
		r.Message = resp.Result.Message
	}
}

// printer prints results.
type printer interface {
	print(r result)
	end(checked, denied int) error
}

// text prints for people, a line for each object.
type text struct{ out io.Writer }

func (t *text) print(r result) {
	switch {
	case r.Outcome == "skipped":
		fmt.Fprintf(t.out, "skipped  %s: has no images\n", r.where())
	case r.Message != "":
		fmt.Fprintf(t.out, "%-8s %s: %s\n", r.Outcome, r.where(), r.Message)
	default:
		fmt.Fprintf(t.out, "%-8s %s\n", r.Outcome, r.where())
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(t.out, "         %s\n", w)
	}
}

func (t *text) end(checked, denied int) error {
	_, err := fmt.Fprintf(t.out, "%d checked, %d denied\n", checked, denied)
	return err
}

// list prints for programs, when all is known.
type list struct {
	out     io.Writer
	All     []result `json:"results"`
	Checked int      `json:"checked"`
	Denied  int      `json:"denied"`
}

func (l *list) print(r result) { l.All = append(l.All, r) }

func (l *list) end(checked, denied int) error {
	l.Checked, l.Denied = checked, denied
	e := json.NewEncoder(l.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(l)
}
