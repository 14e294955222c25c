package main

import (
	"math"
	"slices"
)

// median returns the middle value, or the mean of the two in the middle. NaNs do not count. Without values it is NaN.
func median(values []float64) float64 {
	sorted := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	slices.Sort(sorted)
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// pairedRatio returns the median of the ratios of a to b in each round. Rounds that one of the two does not have, and
// values that are 0, do not count. Without any round it is NaN.
func pairedRatio(a, b []float64) float64 {
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if a[i] > 0 && b[i] > 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return median(ratios)
}
