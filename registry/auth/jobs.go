package auth

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"trow/registry/admin"
)

// The names of the jobs.
const (
	JobCreateRobot = "token-create"
	JobRevokeRobot = "token-revoke"
	JobListRobots  = "token-list"
	JobExplain     = "can-i"
)

// CreatedRobot is the outcome of the job token-create.
type CreatedRobot struct {
	Robot
	Secret  string `json:"secret"`            // the only copy: it is not stored
	Warning string `json:"warning,omitempty"` // what keeps the secret from being one, and the remedy
}

// Jobs returns what the server does for the commands about robots and rights, by name; each is an admin.Job. Their
// parameters are those of a URL's query: name, repository, action and expires (RFC 3339) of a robot, and replace
// (true); as, group, repository and action of a question. They return CreatedRobot, Robot, []Robot, and Explanation.
func (g *Guard) Jobs() map[string]http.Handler {
	return map[string]http.Handler{
		JobCreateRobot: admin.Job(func(ctx context.Context, q url.Values, _ func(any)) (any, error) {
			r, err := parseRobot(q)
			if err != nil {
				return nil, err
			}
			create := g.CreateRobot
			if q.Get("replace") == "true" {
				create = g.ReplaceRobot
			}
			secret, err := create(ctx, r)
			if err != nil {
				return nil, err
			}
			g.logRobot("created", r.Name)
			done := CreatedRobot{Robot: r, Secret: secret}
			if g.options.sendsToPlain() { // a server without other logins starts like that: see checkPlain
				done.Warning = "no-tls: clients are sent to plain HTTP, and send the token in the clear; " + plainRemedy
				g.options.Log.Warn().Str("robot", r.Name).Msg(done.Warning)
			}
			return done, nil
		}),
		JobRevokeRobot: admin.Job(func(ctx context.Context, q url.Values, _ func(any)) (any, error) {
			name := q.Get("name")
			if err := g.RevokeRobot(ctx, name); err != nil {
				return nil, err
			}
			g.logRobot("revoked", name)
			return Robot{Name: name}, nil
		}),
		JobListRobots: admin.Job(func(ctx context.Context, _ url.Values, _ func(any)) (any, error) {
			return g.Robots(ctx), nil
		}),
		JobExplain: admin.Job(func(ctx context.Context, q url.Values, _ func(any)) (any, error) {
			who, err := g.Impersonate(q.Get("as"), q["group"])
			if err != nil {
				return nil, err
			}
			return g.Explain(ctx, who, q.Get("repository"), Action(q.Get("action")))
		}),
	}
}

// logRobot logs that a robot was created or revoked.
func (g *Guard) logRobot(event, name string) {
	g.options.Log.Info().Str("robot", name).Str("event", event).Msg("token")
}

// parseRobot reads the robot that a query describes.
func parseRobot(q url.Values) (r Robot, err error) {
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
