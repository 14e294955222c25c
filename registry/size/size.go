// Package size parses and formats amounts of bytes, as Kubernetes writes them: 500Mi, 2Gi, or a percentage of a total.
// It does not know what is measured: the settings that use it bound their values themselves.
package size

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Parse parses a number of bytes that is not negative. The error names the text and says how to write one; the caller
// puts the name of the setting before it.
func Parse(text string) (int64, error) {
	q, err := ParseQuantity(text)
	if err == nil && q.Sign() < 0 {
		err = invalid(text)
	}
	if err != nil {
		return 0, err
	}
	return q.Value(), nil
}

// ParseQuantity is [Parse] for callers whose own check of the value names its bounds: it accepts negative numbers.
func ParseQuantity(text string) (resource.Quantity, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil { // its own text is a regular expression
		return resource.Quantity{}, invalid(text)
	}
	return q, nil
}

func invalid(text string) error {
	return fmt.Errorf("%.40q is not a number of bytes; write it as 500Mi or 2Gi", text)
}

// Amount is a number of bytes, or a percentage of a total. The zero value is 0 bytes.
type Amount struct {
	percent int64
	bytes   int64 // if percent is 0
}

// ParseAmount parses a number of bytes, or a percentage, which is a whole number from least to most: 512Mi, 40%.
func ParseAmount(text string, least, most int64) (Amount, error) {
	if number, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < least || n > most {
			return Amount{}, fmt.Errorf("%.40q is not a percentage from %d%% to %d%%", text, least, most)
		}
		return Amount{percent: n}, nil
	}
	n, err := Parse(text)
	return Amount{bytes: n}, err
}

// Percent reports whether the amount is a percentage.
func (a Amount) Percent() bool { return a.percent > 0 }

// Of returns the amount in bytes, for a total in bytes.
func (a Amount) Of(total int64) int64 {
	if a.percent > 0 {
		return total / 100 * a.percent // in this order, because total times percent may overflow
	}
	return a.bytes
}

// Format returns a number of bytes for people: 16 MiB. Negative numbers are shown as 0 B.
func Format(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
