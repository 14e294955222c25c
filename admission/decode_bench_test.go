package admission

import (
	"os"
	"testing"
)

func BenchmarkDecodeReview(b *testing.B) {
	for _, name := range []string{"pod-create-allowed", "deployment-create", "pod-ephemeralcontainers-update"} {
		body, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decodeReview(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
