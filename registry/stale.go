package registry

import (
	"fmt"
	"net/http"
	"strconv"

	"trow/storage"
)

// catchUp waits until the index has what other processes have changed, before tags, lists, or whether content exists
// are read; content that is read by its digest does not change. If the journal does not answer in time, the headers say
// how old the answer may be, in seconds. The distribution spec allows no other code of Warning (RFC 7234, section 5.5)
// than 299.
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

// canChange reports whether other processes may have changed the answer to a request with this method, which reads.
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
