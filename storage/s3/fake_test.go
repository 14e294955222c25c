package s3_test

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is an S3 service in memory: what the engine uses of the API, with faults that a test asks for. It keeps no bytes
// beyond keep, so that large uploads can be tested: of those, reads return zeros.
type fake struct {
	*httptest.Server
	keep int64
	min  int64 // bytes of all parts but the last

	mu        sync.Mutex // guards all below
	objects   map[string]*object
	uploads   map[string]*multipart
	versioned bool
	wholeKeys bool // multipart uploads are listed by their whole key alone, as MinIO does
	hook      func(op string, r *http.Request) fault
	calls     map[string]int
	received  int64 // bytes of bodies
	nextID    int
}

type object struct {
	data []byte
	size int64
	meta string
	etag string
	time time.Time
}

type multipart struct {
	key, meta string
	began     time.Time
	parts     map[int]*object
	working   bool // a request to complete it is held
}

// fault is what happens to a request.
type fault struct {
	status int           // answered instead, without an effect
	code   string        // the S3 code of that answer
	lost   bool          // the effect happens, and the connection breaks instead of an answer
	torn   int64         // the connection breaks after so many bytes of the answer; 0: it does not
	hold   chan struct{} // the request waits for it
}

func newFake(t testing.TB) *fake {
	f := &fake{keep: 1 << 30, min: 5 << 20, objects: map[string]*object{}, uploads: map[string]*multipart{},
		calls: map[string]int{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// on sets what happens to requests from now on.
func (f *fake) on(hook func(op string, r *http.Request) fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

func (f *fake) count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

func (f *fake) total() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, calls := range f.calls {
		n += calls
	}
	return n
}

func (f *fake) bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.received
}

func (f *fake) keys() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.objects {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func (f *fake) openUploads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.uploads)
}

// operation names a request as the API reference does.
func operation(r *http.Request, key string) string {
	q := r.URL.Query()
	switch {
	case q.Has("versioning"):
		return "GetBucketVersioning"
	case q.Has("object-lock"):
		return "GetObjectLockConfiguration"
	case q.Has("delete"):
		return "DeleteObjects"
	case key == "" && q.Has("uploads"):
		return "ListMultipartUploads"
	case key == "" && r.Method == http.MethodGet:
		return "ListObjectsV2"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "CreateMultipartUpload"
	case r.Method == http.MethodPost:
		return "CompleteMultipartUpload"
	case q.Has("partNumber"):
		return "UploadPart"
	case q.Has("uploadId"):
		return "AbortMultipartUpload"
	}
	return map[string]string{"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject",
		"DELETE": "DeleteObject"}[r.Method]
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	op := operation(r, key)
	f.mu.Lock()
	f.calls[op]++
	hook := f.hook
	f.mu.Unlock()
	body, err := f.body(r)
	if err != nil { // the client has gone in the middle
		panic(http.ErrAbortHandler)
	}
	var what fault
	if hook != nil {
		what = hook(op, r)
	}
	if what.hold != nil {
		f.work(r, true)
		<-what.hold
		f.work(r, false)
	}
	a := answer{status: what.status, code: what.code}
	switch {
	case what.status != 0:
	case bucket != "bucket":
		a = answer{status: 404, code: "NoSuchBucket"}
	default:
		a = f.answer(op, key, r, body)
	}
	if what.lost {
		panic(http.ErrAbortHandler)
	}
	f.send(w, r, a, what.torn)
}

// work notes that a request to complete a multipart upload has begun, or has ended.
func (f *fake) work(r *http.Request, begun bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u := f.uploads[r.URL.Query().Get("uploadId")]; u != nil && r.Method == http.MethodPost {
		u.working = begun
	}
}

type answer struct {
	status int
	code   string
	header map[string]string
	xml    any
	object *object
	from   int64
	length int64
}

func (f *fake) send(w http.ResponseWriter, r *http.Request, a answer, torn int64) {
	for k, v := range a.header {
		w.Header().Set(k, v)
	}
	switch {
	case a.code != "":
		w.WriteHeader(a.status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>asked for by the test</Message></Error>", a.code)
		}
	case a.object != nil:
		w.Header().Set("Content-Length", strconv.FormatInt(a.length, 10))
		w.WriteHeader(a.status)
		if r.Method == http.MethodHead {
			return
		}
		n := a.length
		if torn > 0 && torn < n {
			n = torn
		}
		if a.object.data == nil {
			_, _ = io.CopyN(w, zeros{}, n)
		} else {
			_, _ = w.Write(a.object.data[a.from : a.from+n])
		}
		if n < a.length {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	case a.xml != nil:
		w.WriteHeader(a.status)
		_ = xml.NewEncoder(w).Encode(a.xml)
	default:
		w.WriteHeader(a.status)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// body reads a body, which the client signs in chunks when there is no TLS.
func (f *fake) body(r *http.Request) (o *object, err error) {
	src := io.Reader(r.Body)
	if strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		src = &chunks{r: bufio.NewReader(r.Body)}
	}
	// No MD5: it is slow, and nothing may rely on an ETag being one.
	sum, o := crc32.New(crc32.MakeTable(crc32.Castagnoli)), &object{time: time.Now()}
	length := r.ContentLength
	if decoded, err := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64); err == nil {
		length = decoded
	}
	if length > f.keep {
		o.size, err = io.Copy(sum, src)
	} else {
		var buf bytes.Buffer
		buf.Grow(int(max(length, 0)))
		o.size, err = io.Copy(io.MultiWriter(&buf, sum), src)
		o.data = buf.Bytes()
		if o.data == nil {
			o.data = []byte{}
		}
	}
	o.etag = fmt.Sprintf("crc-%08x-%d", sum.Sum32(), o.size)
	f.mu.Lock()
	f.received += o.size
	f.mu.Unlock()
	return o, err
}

// chunks reads aws-chunked: a length in hex, a signature, the bytes.
type chunks struct {
	r    *bufio.Reader
	left int64
	end  bool
}

func (c *chunks) Read(p []byte) (int, error) {
	for c.left == 0 {
		if c.end {
			return 0, io.EOF
		}
		line, err := c.r.ReadString('\n')
		if err != nil {
			return 0, err
		}
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		hexLength, _, _ := strings.Cut(line, ";")
		if c.left, err = strconv.ParseInt(hexLength, 16, 64); err != nil {
			return 0, err
		}
		c.end = c.left == 0
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (f *fake) answer(op, key string, r *http.Request, body *object) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	switch op {
	case "PutObject":
		body.meta = r.Header.Get("X-Amz-Meta-Trow-Upload")
		f.objects[key] = body
		return answer{status: 200, header: map[string]string{"ETag": `"` + body.etag + `"`}}
	case "HeadObject", "GetObject":
		return f.read(key, r)
	case "DeleteObject":
		delete(f.objects, key)
		return answer{status: 204}
	case "DeleteObjects":
		var asked struct{ Object []struct{ Key string } }
		if err := xml.Unmarshal(body.data, &asked); err != nil {
			return answer{status: 400, code: "MalformedXML"}
		}
		for _, o := range asked.Object {
			delete(f.objects, o.Key)
		}
		return answer{status: 200, xml: struct {
			XMLName xml.Name `xml:"DeleteResult"`
		}{}}
	case "ListObjectsV2":
		return f.list(q)
	case "GetBucketVersioning":
		status := map[bool]string{true: "Enabled"}[f.versioned]
		return answer{status: 200, xml: struct {
			XMLName xml.Name `xml:"VersioningConfiguration"`
			Status  string   `xml:",omitempty"`
		}{Status: status}}
	case "GetObjectLockConfiguration":
		return answer{status: 404, code: "ObjectLockConfigurationNotFoundError"}
	}
	return f.multipart(op, key, r, body)
}

func (f *fake) multipart(op, key string, r *http.Request, body *object) answer {
	q := r.URL.Query()
	if op == "CreateMultipartUpload" {
		f.nextID++
		id := fmt.Sprint("upload-", f.nextID)
		f.uploads[id] = &multipart{key: key, meta: r.Header.Get("X-Amz-Meta-Trow-Upload"), began: time.Now(),
			parts: map[int]*object{}}
		return answer{status: 200, xml: struct {
			XMLName               xml.Name `xml:"InitiateMultipartUploadResult"`
			Bucket, Key, UploadId string
		}{Bucket: "bucket", Key: key, UploadId: id}}
	}
	if op == "ListMultipartUploads" {
		type upload struct {
			Key, UploadId string
			Initiated     time.Time
		}
		var all []upload
		for id, u := range f.uploads {
			if prefix := q.Get("prefix"); strings.HasPrefix(u.key, prefix) && (!f.wholeKeys || u.key == prefix) {
				all = append(all, upload{u.key, id, u.began})
			}
		}
		return answer{status: 200, xml: struct {
			XMLName xml.Name `xml:"ListMultipartUploadsResult"`
			Upload  []upload
		}{Upload: all}}
	}
	u := f.uploads[q.Get("uploadId")]
	if u == nil || u.key != key {
		return answer{status: 404, code: "NoSuchUpload"}
	}
	switch op {
	case "UploadPart":
		number, _ := strconv.Atoi(q.Get("partNumber"))
		u.parts[number] = body
		return answer{status: 200, header: map[string]string{"ETag": `"` + body.etag + `"`}}
	case "AbortMultipartUpload":
		delete(f.uploads, q.Get("uploadId"))
		return answer{status: 204}
	}
	return f.complete(q.Get("uploadId"), u, body)
}

func (f *fake) complete(id string, u *multipart, body *object) answer {
	var asked struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body.data, &asked); err != nil || len(asked.Part) == 0 {
		return answer{status: 400, code: "MalformedXML"}
	}
	whole, last := &object{meta: u.meta, time: time.Now(), data: []byte{}}, 0
	for i, p := range asked.Part {
		o := u.parts[p.PartNumber]
		switch {
		case p.PartNumber <= last:
			return answer{status: 400, code: "InvalidPartOrder"}
		case o == nil || strings.Trim(p.ETag, `"`) != o.etag:
			return answer{status: 400, code: "InvalidPart"}
		case i < len(asked.Part)-1 && o.size < f.min:
			return answer{status: 400, code: "EntityTooSmall"}
		}
		whole.size, last = whole.size+o.size, p.PartNumber
		if o.data == nil || whole.data == nil || whole.size > f.keep {
			whole.data = nil
		} else {
			whole.data = append(whole.data, o.data...)
		}
	}
	whole.etag = fmt.Sprintf("%s-%d", strings.Repeat("0", 32), len(asked.Part))
	if !u.working { // versitygw answers as if the request that it works on had succeeded
		f.objects[u.key] = whole
		delete(f.uploads, id)
	}
	return answer{status: 200, xml: struct {
		XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
		Bucket, Key, ETag string
	}{Bucket: "bucket", Key: u.key, ETag: whole.etag}}
}

func (f *fake) read(key string, r *http.Request) answer {
	o := f.objects[key]
	if o == nil {
		return answer{status: 404, code: "NoSuchKey"}
	}
	a := answer{status: 200, object: o, length: o.size, header: map[string]string{"ETag": `"` + o.etag + `"`,
		"X-Amz-Meta-Trow-Upload": o.meta, "Last-Modified": o.time.UTC().Format(http.TimeFormat)}}
	if part, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		first, last, _ := strings.Cut(part, "-")
		from, _ := strconv.ParseInt(first, 10, 64)
		to, err := strconv.ParseInt(last, 10, 64)
		if err != nil || to >= o.size {
			to = o.size - 1
		}
		if from >= o.size {
			return answer{status: 416, code: "InvalidRange"}
		}
		a.status, a.from, a.length = 206, from, to-from+1
		a.header["Content-Range"] = fmt.Sprintf("bytes %d-%d/%d", from, to, o.size)
	}
	return a
}

func (f *fake) list(q url.Values) answer {
	type content struct {
		Key          string
		Size         int64
		ETag         string
		LastModified time.Time
	}
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	var keys []string
	for k := range f.objects {
		if strings.HasPrefix(k, q.Get("prefix")) && k > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	const page = 10 // small, so that a test lists several
	result := struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		Contents              []content
	}{}
	if result.IsTruncated = len(keys) > page; result.IsTruncated {
		keys = keys[:page]
		result.NextContinuationToken = keys[page-1]
	}
	for _, k := range keys {
		o := f.objects[k]
		result.Contents = append(result.Contents, content{k, o.size, `"` + o.etag + `"`, o.time.UTC()})
	}
	return answer{status: 200, xml: result}
}

// address returns an address on which nothing listens.
func address(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
