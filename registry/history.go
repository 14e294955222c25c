package registry

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"trow/registry/auth"
	"trow/storage"
)

// historyWord marks the path of a tag's history.
const historyWord = "/manifest_history"

// OldPaths passes GET /<name>/manifest_history/<tag>, the path of Trow up to 0.6, to the API, and all else to next.
func OldPaths(api http.Handler, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if isHistory(r.URL.Path) {
			api.ServeHTTP(w, r)
			return
		}
		next(w, r)
	}
}

// isHistory reports whether a path is that of a tag's history, without /v2.
func isHistory(path string) bool {
	i := strings.LastIndexByte(path, '/')
	return i > 0 && strings.HasSuffix(path[:i], historyWord) && i > len(historyWord)
}

// target is one of what a tag has named, as Trow up to 0.6 answered; by is new.
type target struct {
	Digest string    `json:"digest"`
	Date   time.Time `json:"date"`
	By     string    `json:"by,omitempty"`
}

// history answers what a tag names and has named, the newest first. Who has set it is for those who may push to the
// repository. n bounds the number of results, and last is the digest after which they start.
func (r *Registry) history(w http.ResponseWriter, req *http.Request, c *call) error {
	p, err := parsePage(req.URL.Query())
	if err != nil {
		return err
	}
	targets, err := r.targets(req.Context(), c.repo, c.ref)
	if err != nil {
		return err
	}
	if p.last != "" {
		i := slices.IndexFunc(targets, func(t storage.Target) bool { return t.Digest.String() == p.last })
		if i < 0 {
			i = len(targets) - 1
		}
		targets = targets[i+1:]
	}
	named := r.options.Auth.Authorize(req.Context(), c.who, c.repo, auth.Push) == nil
	list := make([]target, 0, len(targets))
	for _, t := range targets[:min(len(targets), p.n)] {
		one := target{Digest: t.Digest.String(), Date: t.Since.UTC().Truncate(time.Millisecond)}
		if named {
			one.By = t.By
		}
		list = append(list, one)
	}
	writeJSON(w, req, struct {
		Image   string   `json:"image"`
		History []target `json:"history"`
	}{c.repo + ":" + c.ref, list})
	return nil
}
