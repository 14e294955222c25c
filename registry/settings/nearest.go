package settings

import "slices"

// Nearest returns the name that a misspelled one most likely means, empty if none is near.
func Nearest(name string, all []string) string {
	best, least := "", max(len(name)/3, min(len(name)/2, 2))+1 // two letters that changed places are two changes
	for _, other := range slices.Sorted(slices.Values(all)) {
		if d := distance(name, other); d < least {
			best, least = other, d
		}
	}
	return best
}

// distance is how many letters have to be added, removed or replaced to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
