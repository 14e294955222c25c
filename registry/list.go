package registry

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// maxPage bounds a list. Who asks for more gets this many and a link to the rest.
const maxPage = 10_000

// page reads n and last of a list. Without n it is as long as can be.
func page(q url.Values) (n int, last string, err error) {
	last = q.Get("last")
	if !q.Has("n") {
		return maxPage, last, nil
	}
	v := q.Get("n")
	if v == "" || !digits(v) {
		return 0, "", (&fault{code: codeUnsupported, message: "n is the number of results asked for, 0 or more",
			detail: map[string]string{"n": clip(v)}}).with(http.StatusBadRequest)
	}
	return int(min(number(v), maxPage)), last, nil
}

// link points to the next page (distribution spec, end-8b; RFC 8288).
func link(w http.ResponseWriter, path string, n int, last string) {
	q := url.Values{"n": {strconv.Itoa(n)}, "last": {last}}
	w.Header().Set("Link", "<"+path+"?"+q.Encode()+`>; rel="next"`)
}

// turnPage cuts a list that was asked for with one entry more than the page has.
func turnPage(w http.ResponseWriter, path string, n int, list []string) []string {
	if len(list) <= n {
		return list
	}
	list = list[:n]
	if n > 0 {
		link(w, path, n, list[n-1])
	}
	return list
}

// tags answers end-8.
func (r *Registry) tags(w http.ResponseWriter, req *http.Request, rt route) error {
	n, last, err := page(req.URL.Query())
	if err != nil {
		return err
	}
	var tags []string
	found := false
	if !rt.hidden {
		tags, found, err = r.options.Index.Tags(req.Context(), rt.repo, last, n+1)
	}
	if err != nil {
		return err
	}
	if !found {
		return &fault{code: codeNameUnknown, message: "no repository of this name", detail: map[string]string{"name": rt.repo}}
	}
	tags = turnPage(w, "/v2/"+rt.repo+"/tags/list", n, tags)
	writeJSON(w, req, http.StatusOK, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{rt.repo, tags})
	return nil
}

// catalog answers Docker's list of repositories.
func (r *Registry) catalog(w http.ResponseWriter, req *http.Request, rt route) error {
	n, last, err := page(req.URL.Query())
	if err != nil {
		return err
	}
	repos, err := r.repos(req.Context(), last, n+1, r.options.Auth.Readable(req.Context(), rt.who))
	if err != nil {
		return err
	}
	repos = turnPage(w, "/v2/_catalog", n, repos)
	writeJSON(w, req, http.StatusOK, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{repos})
	return nil
}

// repos lists n repositories after the given one that may be read; a nil readable stands for all. It goes on until it
// has that many, so that a page that is not full is the last one, whatever lies between.
func (r *Registry) repos(ctx context.Context, after string, n int, readable func(string) bool) ([]string, error) {
	if readable == nil {
		return r.options.Index.Repos(ctx, after, n)
	}
	list := []string{}
	for len(list) < n {
		const piece = 1000
		next, err := r.options.Index.Repos(ctx, after, piece)
		if err != nil {
			return nil, err
		}
		for _, repo := range next {
			if len(list) < n && readable(repo) {
				list = append(list, repo)
			}
		}
		if len(next) < piece {
			break
		}
		after = next[piece-1]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return list, nil
}
