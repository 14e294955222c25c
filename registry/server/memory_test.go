package server

import (
	"math"
	"os"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

func TestMemoryLimitIsThatOfTheContainer(t *testing.T) {
	for text, want := range map[string]int64{
		"1073741820\n": 966367638, "max\n": math.MaxInt64, "": math.MaxInt64, "0": math.MaxInt64, "-1": math.MaxInt64,
	} {
		if got := heapLimit(bytesIn([]byte(text), nil)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := heapLimit(bytesIn(nil, os.ErrNotExist)); got != math.MaxInt64 {
		t.Errorf("without the file: %d", got)
	}
}

func TestConnectionsFitIntoTheOpenFileLimit(t *testing.T) {
	for files, want := range map[uint64]int{
		1 << 20: 10000, 20100: 10000, 20098: 9999, 1024: 462, 100: 1, 0: 1, math.MaxUint64: 10000,
	} {
		if got := connectionsWith(files, 10000); got != want {
			t.Errorf("%d files: %d connections, want %d", files, got, want)
		}
	}
}

func TestALoweredConnectionLimitIsLogged(t *testing.T) {
	var log strings.Builder
	const want = 1 << 40 // more files than Linux lets any process open
	if got := connectionLimit(want, zerolog.New(&log)); got >= want || got < 1 {
		t.Errorf("%d connections", got)
	}
	text := "max-connections lowered: open-file limit too low (ulimit -n)"
	if !strings.Contains(log.String(), text) || !strings.Contains(log.String(), `"level":"info"`) {
		t.Errorf("the log is %q", &log)
	}
	log.Reset()
	if got := connectionLimit(1, zerolog.New(&log)); got != 1 || log.Len() > 0 {
		t.Errorf("%d connections, the log is %q", got, &log)
	}
}

func TestTheMemoryOfControlGroups(t *testing.T) {
	for text, want := range map[string]string{"0::/kubepods/pod1/c1\n": "/kubepods/pod1/c1", "0::/\n": "/", "": "/",
		"5:cpu:/x\n0::/y\n": "/y", "0::/../up\n": "/up"} {
		if got := groupOf(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if n := Memory(); n < 16<<20 || n == math.MaxInt64 {
		t.Errorf("the process may use %d bytes of memory", n)
	}
}
