// Package desk is where an administrator sees to who may do what: the commands token, can-i and pull-secret, and what
// answers them in the running server.
//
// # Words
//
//   - job: as in package admin; all of these are short.
//   - robot, secret, rule: as in package auth.
//
// # Invariants
//
// A robot's secret is told once, by the job that makes it, and written nowhere else.
//
// # What it does not do
//
// It decides nothing, and it reads no settings: the program hands them over.
package desk

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"trow/registry/admin"
	"trow/registry/auth"
)

// The names of the jobs.
const (
	jobCreate = "token-create"
	jobRevoke = "token-revoke"
	jobList   = "token-list"
	jobCanI   = "can-i"
)

// created is the outcome of making a robot.
type created struct {
	auth.Robot
	Secret string `json:"secret"`
}

// Jobs are what the server does for the commands, by name. tell is called with what has changed, for the log.
func Jobs(g *auth.Guard, tell func(what string, r auth.Robot)) map[string]admin.Job {
	return map[string]admin.Job{
		jobCreate: func(_ context.Context, q url.Values, _ func(any)) (any, error) {
			r, err := wanted(q)
			if err != nil {
				return nil, err
			}
			secret, err := g.CreateRobot(r)
			if err != nil {
				return nil, err
			}
			tell("created", r)
			return created{r, secret}, nil
		},
		jobRevoke: func(_ context.Context, q url.Values, _ func(any)) (any, error) {
			r := auth.Robot{Name: q.Get("name")}
			if err := g.RevokeRobot(r.Name); err != nil {
				return nil, err
			}
			tell("revoked", r)
			return r, nil
		},
		jobList: func(context.Context, url.Values, func(any)) (any, error) { return g.Robots(), nil },
		jobCanI: func(ctx context.Context, q url.Values, _ func(any)) (any, error) {
			who, err := g.Impersonate(q.Get("as"), q["group"])
			if err != nil {
				return nil, err
			}
			return g.Explain(ctx, who, q.Get("repository"), auth.Action(q.Get("action")))
		},
	}
}

// wanted is the robot that a query describes.
func wanted(q url.Values) (r auth.Robot, err error) {
	r = auth.Robot{Name: q.Get("name"), Repositories: q["repository"]}
	if r.Actions, err = auth.ParseActions(q["action"]); err != nil {
		return r, fmt.Errorf("actions: %w", err)
	}
	if text := q.Get("expires"); text != "" {
		if r.Expires, err = time.Parse(time.RFC3339, text); err != nil {
			return r, fmt.Errorf("expires: %.40q is no time", text)
		}
	}
	return r, nil
}
