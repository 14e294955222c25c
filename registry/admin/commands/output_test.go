package commands_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"trow/registry/admin"
	"trow/registry/admin/commands"
)

// TestListsAsJSON: everything that lists has a form for programs, alone on standard output, with lists that are never
// null.
func TestListsAsJSON(t *testing.T) {
	answer := func(done string, reports ...string) admin.Job {
		return func(_ context.Context, _ url.Values, report func(any)) (any, error) {
			for _, r := range reports {
				report(json.RawMessage(r))
			}
			return json.RawMessage(done), nil
		}
	}
	s := newServer(t, map[string]admin.Job{
		"gc": answer(`{"blobs":2,"deleted":1,"freed":10}`),
		"retention": answer(`{"removed":1,"rules":true}`,
			`{"repository":"a","tag":"v","digest":"sha256:1","why":"old"}`),
		"scrub":      answer(`{"blobs":2,"damages":{"sha256:1":{"reason":"cut"}}}`),
		"token-list": answer(`[]`),
	})
	for args, want := range map[string]string{
		"gc -o json": `"freed": 10`, "retention -o json": `"removals": [`, "scrub --output=json": `"damages": {`,
		"token list -o json": "[]\n"} {
		out, errOut, err := s.run("", strings.Fields(args)...)
		if err != nil && !errors.Is(err, commands.ErrDamaged) {
			t.Errorf("%s: %v", args, err)
		}
		if !json.Valid([]byte(out)) || !strings.Contains(out, want) || errOut != "" {
			t.Errorf("%s: %s%s, want %s in it", args, out, errOut, want)
		}
	}
	if _, _, err := s.run("", "ls", "-o", "yaml"); err == nil || !strings.Contains(err.Error(), "want table or json") {
		t.Errorf("another form: %v", err)
	}
}
