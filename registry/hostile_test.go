package registry

import (
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHostileManifestsCostNoMoreThanHonestOnes: memory and time stay within a multiple of what an honest manifest of
// the same size takes.
func TestHostileManifestsCostNoMoreThanHonestOnes(t *testing.T) {
	const most = maxManifest / 2
	fill := func(prefix, unit, suffix string) []byte {
		n := (most - len(prefix) - len(suffix)) / len(unit)
		return []byte(prefix + strings.TrimSuffix(strings.Repeat(unit, n), ",") + suffix)
	}
	numbered := func(prefix, format, suffix string) []byte {
		var b strings.Builder
		b.WriteString(prefix)
		for i := 0; b.Len() < most-200; i++ {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, format, i)
		}
		return []byte(b.String() + suffix)
	}
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:` + strings.Repeat("0", 64) +
		`","size":1}`
	honest := fill(`{"schemaVersion":2,"config":`+layer+`,"layers":[`, layer+",", "]}")
	honestBytes, honestTime := cost(honest, 1)
	if honestBytes > (manifestFactor-1)*most {
		t.Errorf("an honest manifest: %d MiB allocated for %d MiB; manifestFactor is too low",
			honestBytes>>20, most>>20)
	}
	for name, body := range map[string][]byte{
		"commas":                    fill(`{"layers":[`, ",", "]}"),
		"empty descriptors":         fill(`{"schemaVersion":2,"layers":[`, "{},", "]}"),
		"null descriptors":          fill(`{"schemaVersion":2,"layers":[`, "null,", "]}"),
		"empty children":            fill(`{"schemaVersion":2,"manifests":[`, "{},", "]}"),
		"short annotations":         numbered(`{"schemaVersion":2,"annotations":{`, `"%d":""`, "}}"),
		"annotations of descriptor": numbered(`{"schemaVersion":2,"config":{"annotations":{`, `"%d":""`, "}}}"),
		"short urls":                fill(`{"schemaVersion":2,"layers":[{"urls":[`, `"",`, "]}]}"),
		"unknown names":             numbered(`{"schemaVersion":2,"x":{`, `"%d":0`, "}}"),
		"unknown objects":           fill(`{"schemaVersion":2,"x":[`, "{},", "]}"),
		"brackets":                  fill(`{"x":`, "[", "}"),
		"braces":                    fill(``, `{"x":`, "}"),
		"a number":                  fill(`{"schemaVersion":`, "9", "}"),
		"escapes":                   fill(`{"mediaType":"`, `\u0000`, `"}`),
		"surrogates":                fill(`{"mediaType":"`, `\ud800`, `"}`),
		"invalid UTF-8":             fill(`{"mediaType":"`, "\xff", `"}`),
		"the same name":             fill(`{`, `"layers":[],`, "}"),
		"white space":               fill(`{`, " ", "}"),
		"names that fold":           fill(`{`, `"LAYERS":[],`, "}"),
	} {
		bytes, took := cost(body, 1)
		if bytes > 3*honestBytes {
			t.Errorf("%s: %d MiB allocated, an honest manifest takes %d MiB", name, bytes>>20, honestBytes>>20)
		}
		if bytes > (manifestFactor-1)*most { // the body itself is the rest
			t.Errorf("%s: %d MiB allocated for %d MiB; manifestFactor is too low", name, bytes>>20, most>>20)
		}
		if took > 10*honestTime { // another process may have used the processor
			_, took = cost(body, 3)
		}
		if took > 10*honestTime {
			t.Errorf("%s: took %s, an honest manifest takes %s", name, took, honestTime)
		}
	}
}

// cost returns what parsing takes: the bytes allocated, and the least processor time of some tries.
func cost(body []byte, tries int) (bytes uint64, took time.Duration) {
	took = time.Hour
	for range tries {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := processorTime()
		_, _ = parseManifest(typeOCIManifest, body) // other tests check whether it is refused
		took = min(took, processorTime()-begin)
		runtime.ReadMemStats(&after)
		bytes = after.TotalAlloc - before.TotalAlloc
	}
	return bytes, took
}

// processorTime is the processor time that the process has used. The load of other processes does not change it.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // of our own arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
