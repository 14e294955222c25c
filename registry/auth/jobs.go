package auth

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"trow/registry/admin"
)

// The names of the jobs that [Jobs] returns.
const (
	JobCreateRobot = "token-create"
	JobRevokeRobot = "token-revoke"
	JobListRobots  = "token-list"
	JobExplain     = "can-i"
)

// CreatedRobot is the outcome of the job that creates a robot. The secret is not stored: it cannot be shown again.
type CreatedRobot struct {
	Robot
	Secret string `json:"secret"`
}

// Jobs returns the server's side of the commands token, can-i and pull-secret, by the jobs' names. notify is called
// with what has changed, for the log.
func Jobs(g *Guard, notify func(what string, r Robot)) map[string]admin.Job {
	return map[string]admin.Job{
		JobCreateRobot: func(_ context.Context, q url.Values, _ func(any)) (any, error) {
			r, err := wanted(q)
			if err != nil {
				return nil, err
			}
			secret, err := g.CreateRobot(r)
			if err != nil {
				return nil, err
			}
			notify("created", r)
			return CreatedRobot{r, secret}, nil
		},
		JobRevokeRobot: func(_ context.Context, q url.Values, _ func(any)) (any, error) {
			r := Robot{Name: q.Get("name")}
			if err := g.RevokeRobot(r.Name); err != nil {
				return nil, err
			}
			notify("revoked", r)
			return r, nil
		},
		JobListRobots: func(context.Context, url.Values, func(any)) (any, error) { return g.Robots(), nil },
		JobExplain: func(ctx context.Context, q url.Values, _ func(any)) (any, error) {
			who, err := g.Impersonate(q.Get("as"), q["group"])
			if err != nil {
				return nil, err
			}
			return g.Explain(ctx, who, q.Get("repository"), Action(q.Get("action")))
		},
	}
}

// wanted is the robot that a query describes.
func wanted(q url.Values) (r Robot, err error) {
	r = Robot{Name: q.Get("name"), Repositories: q["repository"]}
	if r.Actions, err = ParseActions(q["action"]); err != nil {
		return r, fmt.Errorf("actions: %w", err)
	}
	if text := q.Get("expires"); text != "" {
		if r.Expires, err = time.Parse(time.RFC3339, text); err != nil {
			return r, fmt.Errorf("expires: %.40q is not a valid time; want RFC 3339", text)
		}
	}
	return r, nil
}
