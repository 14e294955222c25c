package settings

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that people may also write in days: 30d. It is a pflag.Value, and is decoded from text in
// the configuration file.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error { return d.Set(string(text)) }

// Set implements pflag.Value. Errors: text is not a duration, or negative.
func (d *Duration) Set(text string) error {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16) // 16 bits are 179 years, which fit into a time.Duration
		if err != nil {
			return fmt.Errorf("%.40q is not a valid duration; write it as 30d or 12h", text)
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	t, err := time.ParseDuration(text)
	if err != nil || t < 0 {
		return fmt.Errorf("%.40q is not a valid duration; write it as 30d or 12h", text)
	}
	*d = Duration(t)
	return nil
}

// String implements pflag.Value. It returns whole days as days.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if t := time.Duration(d); t%day != 0 || t == 0 {
		return t.String()
	}
	return fmt.Sprintf("%dd", time.Duration(d)/day)
}

// Type implements pflag.Value.
func (d *Duration) Type() string { return "duration" }
