package registry

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxPage bounds a list. A client that asks for more gets a link to the rest.
const maxPage = 10_000

// page is the part of a list that a client asks for: at most n entries after last.
type page struct {
	n    int
	last string
}

// parsePage parses n and last. Without n a page has maxPage entries.
func parsePage(q url.Values) (page, error) {
	last := q.Get("last")
	if !q.Has("n") {
		return page{maxPage, last}, nil
	}
	v := q.Get("n")
	if v == "" || !digits(v) {
		return page{}, pageInvalid(v)
	}
	return page{int(min(number(v), maxPage)), last}, nil
}

// cut shortens a list of up to n+1 entries to the page, and links to the next page if there is one (distribution spec,
// end-8b; RFC 8288). A page of no entries has no link: it would lead to the same page.
func (p page) cut(h http.Header, path string, list []string) []string {
	if len(list) <= p.n {
		return list
	}
	list = list[:p.n]
	if p.n > 0 {
		setNextLink(h, path, url.Values{"n": {strconv.Itoa(p.n)}, "last": {list[p.n-1]}})
	}
	return list
}

// setNextLink sets the link to the next page. path may have a query.
func setNextLink(h http.Header, path string, q url.Values) {
	separator := "?"
	if strings.Contains(path, separator) {
		separator = "&"
	}
	h.Set("Link", "<"+path+separator+q.Encode()+`>; rel="next"`)
}

// listTags answers end-8.
func (r *Registry) listTags(w http.ResponseWriter, req *http.Request, c *call) error {
	p, err := parsePage(req.URL.Query())
	if err != nil {
		return err
	}
	tags, stale, err := r.tags(req.Context(), c.repo, p.last, p.n+1, onlyHeld(req, c))
	if err != nil {
		return err
	}
	r.warnStale(w, req, stale)
	tags = p.cut(w.Header(), r.location(c, "/tags/list"), tags)
	return r.writeList(w, req, tags, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{c.asked.path, tags})
}

// listRepos answers Docker's list of repositories.
func (r *Registry) listRepos(w http.ResponseWriter, req *http.Request, c *call) error {
	p, err := parsePage(req.URL.Query())
	if err != nil {
		return err
	}
	after, err := r.cursors.open(p.last)
	if err != nil {
		return err
	}
	repos, rest, err := r.repos(req.Context(), after, p.n+1, r.options.Auth.Readable(req.Context(), c.who))
	if err != nil {
		return r.refusal(req, c, err)
	}
	path := r.options.Prefix + "/v2/_catalog"
	if rest != "" && p.n > 0 && len(repos) <= p.n { // the page ends early, so that what it costs is bounded
		setNextLink(w.Header(), path, url.Values{"n": {strconv.Itoa(p.n)}, "last": {r.cursors.seal(rest)}})
	}
	repos = p.cut(w.Header(), path, repos)
	return r.writeList(w, req, repos, struct {
		Repositories []string `json:"repositories"`
	}{repos})
}
