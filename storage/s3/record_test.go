package s3

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func sample(parts int) record {
	h := digest.SHA512.Hash()
	h.Write([]byte("bytes"))
	r := record{epoch: 300, writer: newWriter(), committing: true, used: time.Unix(1_800_000_000, 0),
		alg:   digest.SHA512,
		state: stateOf(h), place: "0000002a/0123456789abcdef0123456789abcdef", upload: "an-id_of.the/service==",
		next: 10_001,
		tail: tail{"0000002b/0123456789abcdef0123456789abcdef", 4 << 20}, size: 4 << 20}
	for i := range parts {
		etag := strings.Repeat("0f", 16)
		switch i % 3 {
		case 1:
			etag = "an ETag that is no MD5"
		case 2:
			etag = strings.Repeat("0F", 16) // must come back as it was
		}
		r.parts = append(r.parts, part{number: 1 + i + i/2, size: 5<<20 + int64(i), etag: etag})
		r.size += 5<<20 + int64(i)
	}
	return r
}

func TestRecordComesBackAsItWas(t *testing.T) {
	for _, parts := range []int{0, 1, 7, 6000} {
		r := sample(parts)
		got, err := decodeRecord(r.encode())
		if err != nil || !reflect.DeepEqual(*got, r) {
			t.Errorf("%d parts: %+v, %v; want %+v", parts, got, err, r)
		}
		if h := hashFrom(got.alg, got.state, got.size); h == nil || digest.NewDigest(got.alg, h) !=
			digest.SHA512.FromString("bytes") {
			t.Error("the hash did not come back")
		}
	}
	r := sample(0)
	for i := range maxParts { // 1.5 MiB is what etcd takes
		r.parts = append(r.parts, part{i + 1, 5 << 30, strings.Repeat("0f", 16)})
	}
	if n := len(r.encode()); n > 256<<10 {
		t.Errorf("a record of 10,000 parts has %d bytes", n)
	}
}

func FuzzRecord(f *testing.F) {
	r := sample(5)
	whole := r.encode()
	f.Add(whole)
	for range 50 {
		cut := append([]byte(nil), whole[:rand.IntN(len(whole))]...)
		f.Add(cut)
		f.Add(append(cut, 0xff))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		if r.size < 0 || r.tail.size < 0 || r.partial() < 0 && len(r.parts) == 0 {
			t.Errorf("%+v", r)
		}
		again, err := decodeRecord(r.encode())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%+v, %v; want %+v", again, err, r)
		}
	})
}

func TestSizesOfParts(t *testing.T) {
	s := sizes{least: minPart, first: 8 << 20, largest: 128 << 20}
	for number, want := range map[int]int64{1: 8 << 20, 500: 8 << 20, 501: 16 << 20, 1001: 24 << 20, 7501: 128 << 20,
		10_000: 128 << 20} {
		if got := s.of(number); got != want {
			t.Errorf("part %d has %d bytes, want %d", number, got, want)
		}
	}
	if most := s.most(1) >> 30; most != 781 {
		t.Errorf("10,000 parts hold %d GiB; update limits.go and README.md", most)
	}
}

func TestParseURL(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "eu-west-1")
	for text, want := range map[string]Options{
		"s3://bucket": {Bucket: "bucket", Endpoint: "https://s3.amazonaws.com", Region: "eu-west-1", PartSize: 8 << 20},
		"s3://my.bucket/a/b/?endpoint=http://127.0.0.1:7070&region=x&path-style=true&part-size=5242880": {
			Bucket: "my.bucket",
			Prefix: "a/b", Endpoint: "http://127.0.0.1:7070", Region: "x", PathStyle: true, PartSize: 5 << 20},
		"s3://bucket?sse=aws:kms&kms-key=k&ca-file=/ca.crt&region=r": {Bucket: "bucket",
			Endpoint: "https://s3.amazonaws.com", Region: "r", SSE: "aws:kms", KMSKey: "k", CAFile: "/ca.crt",
			PartSize: 8 << 20},
	} {
		want.minPart, want.Memory, want.Timeout = minPart, defaultMemory, defaultTimeout
		if got, err := ParseURL(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                               "s3://BUCKET",
		"bucket":                         "s3://BUCKET",
		"https://bucket":                 "s3://BUCKET",
		"s3:bucket":                      "s3://BUCKET",
		"s3://":                          "bucket",
		"s3://UPPER":                     "bucket",
		"s3://b":                         "bucket",
		"s3://key:topsecret@bucket":      "credentials",
		"s3://bucket?secret=topsecret":   "not a parameter",
		"s3://bucket?redirect=true":      "not a parameter",
		"s3://bucket?region=a&region=b":  "2 times",
		"s3://bucket?path-style=yes":     "true or false",
		"s3://bucket?part-size=1":        "part-size",
		"s3://bucket?part-size=x":        "number of bytes",
		"s3://bucket?sse=rot13":          "sse",
		"s3://bucket?kms-key=k":          "kms-key",
		"s3://bucket/../x":               "prefix",
		"s3://bucket/a%20b":              "prefix",
		"s3://bucket/a/objects":          "prefix ends before",
		"s3://bucket/objects/b":          "prefix ends before",
		"s3://bucket?endpoint=ftp://x":   "endpoint",
		"s3://bucket?endpoint=127.0.0.1": "endpoint",
		"s3://bucket?endpoint=http://key:topsecret@host": "credentials",
		"s3://bucket?endpoint=http://host/path":          "endpoint",
		"s3://bucket?endpoint=%zz":                       "not well-formed",
		"s3://bucket#x":                                  "fragment",
		"s3://key:topsecret@bu cket%zz":                  "s3://BUCKET",
	} {
		if o, err := ParseURL(text); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s: %+v, %v", text, o, err)
		}
	}
}
