package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"trow/registry/namespace"
)

const (
	// maxTags bounds the tags of a repository that are listed: a million of them would take 100 MB for one client.
	maxTags = 100_000
	// tagPage is how many tags a request asks for; registries may give fewer. maxTagPages bounds the requests: Docker
	// Hub and others give at most 100 at once.
	tagPage     = "n=1000"
	maxTagPages = 200
)

// Tags returns the tags of a repository, sorted. more reports that there are others: of maxTags, or of maxTagPages
// pages, the rest is left out. Errors: *Error.
func (u *Upstream) Tags(ctx context.Context, repo string) (tags []string, more bool, err error) {
	next := tagPage
	for range maxTagPages {
		page, query, err := u.tags(ctx, repo, next)
		if err != nil {
			return nil, false, err
		}
		tags = append(tags, page...)
		more = query != "" && query != next // the same page again would never end
		if next = query; !more || len(tags) >= maxTags {
			break
		}
	}
	slices.Sort(tags)
	tags = slices.Compact(tags)
	if len(tags) > maxTags {
		return tags[:maxTags], true, nil
	}
	return tags, more, nil
}

// tags returns one page, and the query of the next.
func (u *Upstream) tags(ctx context.Context, repo, query string) (page []string, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, manifestTime)
	defer cancel()
	resp, err := u.ask(ctx, request{method: http.MethodGet, repo: repo, kind: "tags", ref: "list?" + query,
		header: http.Header{"Accept": {"application/json"}}})
	if e, ok := errors.AsType[*Error](err); ok {
		e.Ref = "tags/list"
		return nil, "", e
	}
	defer resp.Body.Close()
	body, err := u.read(resp, repo, "tags/list")
	if err != nil {
		return nil, "", err
	}
	var list struct {
		Tags []string `json:"tags"`
	}
	if json.Unmarshal(body, &list) != nil {
		return nil, "", u.failure(ErrDamaged, repo, "tags/list", "the list of tags is not JSON")
	}
	page = slices.DeleteFunc(list.Tags, func(tag string) bool { return !namespace.ValidTag(tag) })
	return page, nextPage(resp.Header.Get("Link")), nil
}
