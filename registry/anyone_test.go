package registry_test

import (
	"context"
	"net/http"

	"trow/registry/auth"
)

// anyone is an Authorizer that allows everything without a login.
type anyone struct{}

func (anyone) Identify(*http.Request) (*auth.Identity, error)                       { return auth.Named("", nil), nil }
func (anyone) Authorize(context.Context, *auth.Identity, string, auth.Action) error { return nil }
func (anyone) Readable(context.Context, *auth.Identity) func(string) bool           { return nil }
func (anyone) Challenge(*http.Request, string, auth.Action, error) []string         { return nil }
