package s3

import (
	"context"
	"net"
	"time"

	"github.com/minio/minio-go/v7"
)

// DoNotPause makes the pauses between attempts short. Call it before all tests.
func DoNotPause() { pauseUnit, minio.DefaultRetryUnit = time.Millisecond, time.Millisecond }

// WithMinPart returns options for a service that takes shorter parts, so that tests need not send much.
func WithMinPart(o Options, n int64) Options {
	o.minPart, o.PartSize = n, n
	return o
}

// WithDialer returns options for a service to which connections are made in another way.
func WithDialer(o Options, dial func(ctx context.Context, network, address string) (net.Conn, error)) Options {
	o.dialer = dial
	return o
}

// WithoutHash returns a record with a state of the hash that no version can read.
func WithoutHash(b []byte) []byte {
	r, err := decodeRecord(b)
	if err != nil {
		panic(err)
	}
	r.state = []byte("a state of another version")
	return r.encode()
}

// WithNext returns a record of which all numbers of parts below next are used.
func WithNext(b []byte, next int) []byte {
	r, err := decodeRecord(b)
	if err != nil {
		panic(err)
	}
	r.next = next
	return r.encode()
}

// Named returns the numbers of the parts that a record names, and the first that is not reserved.
func Named(b []byte) (numbers []int, next int) {
	r, err := decodeRecord(b)
	if err != nil {
		panic(err)
	}
	for _, p := range r.parts {
		numbers = append(numbers, p.number)
	}
	return numbers, r.next
}

// SweepAgain makes the next Expire list multipart uploads.
func (b *Blobs) SweepAgain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.swept = time.Time{}
}

// FailuresToOpen is how many requests in a row open the circuit.
const FailuresToOpen = failuresToOpen

// OpenFor is how long the circuit stays open.
const OpenFor = openFor

// Cancelled is whether an error says that a request was given up.
var Cancelled = cancelled
