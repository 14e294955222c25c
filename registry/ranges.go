package registry

import (
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
)

// span is a part of a blob, in bytes.
type span struct{ start, length int64 }

// maxRanges bounds the parts of an answer. Clients that pull parts of a layer (zstd:chunked) ask for up to 1024 at
// once.
const maxRanges = 1024

// requestedRanges parses Range and If-Range (RFC 9110, sections 14.2 and 13.1.5). It returns the parts in the order of
// the request, without those that are outside of the blob; none and true stand for the whole blob, which is also the
// answer to a Range that it cannot parse, with too many parts, or with more bytes than the blob has: they overlap.
func requestedRanges(h http.Header, etag string, size int64) (parts []span, satisfiable bool) {
	text := h.Get("Range")
	if text == "" {
		return nil, true
	}
	if since := h.Get("If-Range"); since != "" && since != etag {
		return nil, true
	}
	unit, set, ok := strings.Cut(text, "=")
	if !ok || !strings.EqualFold(unit, "bytes") || strings.Count(set, ",") >= maxRanges {
		return nil, true
	}
	sum, some := int64(0), false
	for spec := range strings.SplitSeq(set, ",") {
		if spec = strings.TrimSpace(spec); spec == "" { // lists may have empty elements (RFC 9110, section 5.6.1)
			continue
		}
		some = true
		part, ok := parseRange(spec, size)
		if !ok {
			return nil, true
		}
		if part.length > 0 {
			parts, sum = append(parts, part), sum+part.length
		}
	}
	if sum > size && len(parts) > 1 {
		return nil, true
	}
	return parts, !some || len(parts) > 0
}

// parseRange parses first-last, first- or -length. A range outside of the blob has no bytes. It reports whether spec
// has one of these forms.
func parseRange(spec string, size int64) (part span, ok bool) {
	first, last, ok := strings.Cut(spec, "-")
	if !ok || !digits(first) || !digits(last) || first == "" && last == "" {
		return span{}, false
	}
	if first == "" {
		n := min(number(last), size)
		return span{size - n, n}, true
	}
	start, end := number(first), size-1
	if last != "" {
		end = min(number(last), end)
	}
	if start > end {
		return span{}, true
	}
	return span{start, end - start + 1}, true
}

// contentRange is the Content-Range of a part.
func (s span) contentRange(size int64) string {
	return "bytes " + strconv.FormatInt(s.start, 10) + "-" + strconv.FormatInt(s.start+s.length-1, 10) + "/" +
		strconv.FormatInt(size, 10)
}

// sendRanges answers with several parts of a blob, as multipart/byteranges (RFC 9110, sections 14.6 and 15.3.7.2).
func (r *Registry) sendRanges(w http.ResponseWriter, req *http.Request, b blob, etag string, parts []span) error {
	content, err := r.openBlob(req.Context(), b, span{0, b.size})
	if err != nil {
		return err
	}
	defer content.Close()
	boundary := multipart.NewWriter(io.Discard).Boundary() // random, so that no blob can be made to contain it
	heads, length := make([]string, len(parts)), int64(0)
	for n, part := range parts {
		heads[n] = fmt.Sprintf("\r\n--%s\r\nContent-Type: application/octet-stream\r\nContent-Range: %s\r\n\r\n",
			boundary,
			part.contentRange(b.size))
		if n == 0 {
			heads[n] = strings.TrimPrefix(heads[n], "\r\n")
		}
		length += int64(len(heads[n])) + part.length
	}
	end := "\r\n--" + boundary + "--\r\n"
	h := w.Header()
	setBlobHeader(h, b.digest, etag)
	h.Set("Content-Type", "multipart/byteranges; boundary="+boundary)
	h.Set("Content-Length", strconv.FormatInt(length+int64(len(end)), 10))
	w.WriteHeader(http.StatusPartialContent)
	for n, part := range parts {
		if _, err = io.WriteString(w, heads[n]); err == nil {
			err = content.writePart(w, part)
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		_, err = io.WriteString(w, end)
	}
	if err != nil {
		r.cutShort(req.Context(), b, err)
		panic(http.ErrAbortHandler) // a clean end would make a truncated body look complete
	}
	return nil
}
