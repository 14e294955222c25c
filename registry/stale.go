package registry

import (
	"fmt"
	"net/http"
	"strconv"

	"trow/storage"
)

// catchUp waits for what other processes have changed, before what can change is read: tags, lists, and whether a blob
// or a manifest is here. Content that is sent by its digest does not change. If the journal does not answer in time,
// the answer says how old it may be. The distribution spec allows no other code of Warning (RFC 7234, section 5.5) than
// 299.
func (r *Registry) catchUp(w http.ResponseWriter, req *http.Request, c *call) error {
	if !c.canChange(req.Method) {
		return nil
	}
	age, err := r.options.Index.CatchUp(req.Context(), storage.CatchUpTime)
	if age > 0 {
		seconds := strconv.Itoa(int(age.Seconds()))
		w.Header().Set("Warning",
			fmt.Sprintf(`299 - "stale: the registry's journal does not answer; this may be %s s old"`,
				seconds))
		w.Header().Set("Trow-Stale", "journal; age="+seconds)
	}
	return err
}

// canChange reports whether the answer to a request that reads depends on what others may have changed.
func (r *route) canChange(method string) bool {
	if method != http.MethodGet && method != http.MethodHead {
		return false
	}
	switch r.endpoint {
	case endpointManifest:
		return r.digest == "" || method == http.MethodHead
	case endpointBlob:
		return method == http.MethodHead
	case endpointTags, endpointCatalog, endpointReferrers, endpointHistory:
		return true
	}
	return false
}
