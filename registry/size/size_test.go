package size_test

import (
	"strings"
	"testing"

	"trow/registry/size"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "500Mi": 500 << 20, "2Gi": 2 << 30, "1k": 1000, "1e3": 1000,
		"100m": 1} {
		if n, err := size.Parse(text); err != nil || n != want {
			t.Errorf("%s: %d, %v; want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"", "fast", "-1", "-1Gi", "1 Gi", "1GB", "5%"} {
		_, err := size.Parse(text)
		if err == nil || !strings.Contains(err.Error(),
			`"`+text+`" is not a number of bytes; write it as 500Mi or 2Gi`) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if q, err := size.ParseQuantity("-1Gi"); err != nil || q.Value() != -1<<30 {
		t.Errorf("the quantity -1Gi: %v, %v", q, err)
	}
	if _, err := size.ParseQuantity("fast"); err == nil ||
		!strings.Contains(err.Error(), `"fast" is not a number of bytes`) {
		t.Errorf("the quantity fast: %v", err)
	}
	if _, err := size.Parse(strings.Repeat("9x", 1000)); len(err.Error()) > 120 {
		t.Errorf("a long text is repeated: %v", err)
	}
}

func TestAmounts(t *testing.T) {
	const total = 1000 << 20
	for text, want := range map[string]int64{"1%": 10 << 20, "50%": 500 << 20, "0": 0, "1Gi": 1 << 30} {
		if a, err := size.ParseAmount(text, 1, 50); err != nil || a.Of(total) != want {
			t.Errorf("%s: %d, %v; want %d", text, a.Of(total), err, want)
		}
	}
	if a, err := size.ParseAmount("0%", 0, 50); err != nil || a.Of(total) != 0 {
		t.Errorf("0%%: %d, %v", a.Of(total), err)
	}
	for text, want := range map[string]string{"0%": "a percentage from 1% to 50%", "51%": "a percentage from 1% to 50%",
		"%": "a percentage", "1.5%": "a percentage", "1Gi%": "a percentage", "many": "a number of bytes",
		"-1": "a number of bytes"} {
		if a, err := size.ParseAmount(text, 1, 50); err == nil || a != (size.Amount{}) ||
			!strings.Contains(err.Error(), `"`+text+`" is not `+want) {
			t.Errorf("%q: %v, %v", text, a, err)
		}
	}
	all, err := size.ParseAmount("90%", 1, 90)
	if got := all.Of(1 << 62); err != nil || got <= 0 {
		t.Errorf("90%% of 4 EiB are %d bytes, %v", got, err)
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{-1: "0 B", 0: "0 B", 6: "6 B", 16 << 20: "16 MiB", 3 << 29: "1.5 GiB"} {
		if got := size.Format(n); got != want {
			t.Errorf("%d: %s; want %s", n, got, want)
		}
	}
}
