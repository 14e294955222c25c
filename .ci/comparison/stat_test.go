package main

import (
	"math"
	"testing"
)

var nan = math.NaN()

// same reports whether two numbers are equal; NaN equals NaN.
func same(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

func TestMedian(t *testing.T) {
	for _, x := range []struct {
		name   string
		values []float64
		want   float64
	}{
		{"no values", nil, nan},
		{"one value", []float64{7}, 7},
		{"three values: the middle one", []float64{9, 1, 2}, 2},
		{"four values: the mean of the two in the middle", []float64{9, 1, 2, 4}, 3},
		{"missing values do not count", []float64{nan, 5, nan, 1, 3}, 3},
		{"an outlier does not move it", []float64{1, 1, 1e9}, 1},
	} {
		if got := median(x.values); !same(got, x.want) {
			t.Errorf("%s: %v, want %v", x.name, got, x.want)
		}
	}
	values := []float64{3, 1, 2}
	if median(values); values[0] != 3 {
		t.Error("the values were sorted in place")
	}
}

func TestPairedRatio(t *testing.T) {
	for _, x := range []struct {
		name string
		a, b []float64
		want float64
	}{
		{"no values", nil, nil, nan},
		{"ratios are those of the same round", []float64{10, 20, 40}, []float64{10, 10, 10}, 2},
		{"noise that hits a round hits both", []float64{100, 10, 100}, []float64{50, 5, 50}, 2},
		{"a round that one lacks does not count", []float64{10, nan, 30}, []float64{10, 1, 10}, 2},
		{"nor does one that the other lacks at the end", []float64{10, 30, 99}, []float64{10, 10}, 2},
		{"nor a figure that is 0", []float64{10, 5}, []float64{5, 0}, 2},
	} {
		if got := pairedRatio(x.a, x.b); !same(got, x.want) {
			t.Errorf("%s: %v, want %v", x.name, got, x.want)
		}
	}
}
