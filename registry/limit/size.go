package limit

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, written as Kubernetes writes it: 1000000, 500Mi, 10Gi, 2G.
type Size int64

// units are what a number can be followed by.
var units = []struct {
	name  string
	bytes float64
}{{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15}}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	number, factor := strings.TrimSpace(string(text)), 1.0
	for _, u := range units {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = n, u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.Trim(number, "0123456789.") != "" || n*factor >= math.MaxInt64 {
		return fmt.Errorf("%.40q is no number of bytes; write it as 500Mi or 2Gi", text)
	}
	*s = Size(n * factor)
	return nil
}

// String is the size with the largest unit that leaves at least 1, and one digit after the point.
func (s Size) String() string {
	for i := 4; i >= 0; i-- {
		if u := units[i]; float64(s) >= u.bytes {
			return strings.TrimSuffix(strconv.FormatFloat(float64(s)/u.bytes, 'f', 1, 64), ".0") + u.name + "B"
		}
	}
	return strconv.FormatInt(int64(s), 10) + " bytes"
}
