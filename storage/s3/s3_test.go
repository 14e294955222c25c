package s3_test

import (
	"testing"

	"trow/storage"
	"trow/storage/s3"
	"trow/storage/storagetest"
)

func credentials(t *testing.T) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "trow-test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "trow-test-secret")
}

// options are for a fake.
func options(f *fake, r storage.Records) s3.Options {
	return s3.Options{Endpoint: f.URL, Bucket: "bucket", Prefix: "team/trow", PathStyle: true, PartSize: 5 << 20, Records: r}
}

func open(t testing.TB, o s3.Options) *s3.Blobs {
	t.Helper()
	b, err := s3.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuite(t *testing.T) {
	credentials(t)
	storagetest.Placed(t, func(t *testing.T) func(storage.Records) storage.Placed {
		f := newFake(t)
		return func(r storage.Records) storage.Placed { return open(t, options(f, r)) }
	})
}
