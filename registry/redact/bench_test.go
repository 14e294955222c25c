package redact_test

import (
	"io"
	"testing"

	"trow/registry/redact"
)

// BenchmarkWriter is what the last step before the log costs for a line.
func BenchmarkWriter(b *testing.B) {
	const head = `{"level":"info","req":"yxe8pdv6f8kt","method":"GET","path":"/v2/team/my`
	const tail = `app/manifests/v1","status":200,"bytes":1289,"dur":0.061,"user":"alice","time":"2026-11-28T23:46:43Z"}`
	for name, line := range map[string]string{"plain": head + "-" + tail, "underscore": head + "_" + tail} {
		b.Run(name, func(b *testing.B) {
			w, text := redact.Writer(io.Discard), []byte(line)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = w.Write(text)
			}
		})
	}
}
