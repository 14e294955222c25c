package storage

import (
	"slices"
	"sort"
)

// chunkMax bounds the strings that an insertion moves. With 512 an insertion moves at most 8 KiB, and a set of 100,000
// has about 300 chunks to search.
const chunkMax = 512

// ordered is a sorted set of strings: a list of sorted chunks. Lists of tags and of repos are range scans over it. The
// zero value is empty.
type ordered struct {
	chunks [][]string // none is empty
	len    int
}

// find returns the chunk and the index in it where s is, or where it would go.
func (o *ordered) find(s string) (chunk, at int, found bool) {
	chunk = sort.Search(len(o.chunks), func(i int) bool {
		c := o.chunks[i]
		return c[len(c)-1] >= s
	})
	if chunk == len(o.chunks) {
		return chunk, 0, false
	}
	at, found = slices.BinarySearch(o.chunks[chunk], s)
	return chunk, at, found
}

func (o *ordered) insert(s string) {
	chunk, at, found := o.find(s)
	if found {
		return
	}
	o.len++
	if chunk == len(o.chunks) { // beyond the last: the usual case while loading
		if chunk == 0 || len(o.chunks[chunk-1]) >= chunkMax {
			o.chunks = append(o.chunks, []string{s})
			return
		}
		chunk--
		at = len(o.chunks[chunk])
	}
	c := slices.Insert(o.chunks[chunk], at, s)
	o.chunks[chunk] = c
	if len(c) > chunkMax {
		half := slices.Clone(c[len(c)/2:])
		clear(c[len(c)/2:]) // so that the first half does not keep the strings of the second alive
		o.chunks[chunk] = c[:len(c)/2]
		o.chunks = slices.Insert(o.chunks, chunk+1, half)
	}
}

func (o *ordered) remove(s string) {
	chunk, at, found := o.find(s)
	if !found {
		return
	}
	o.len--
	o.chunks[chunk] = slices.Delete(o.chunks[chunk], at, at+1)
	if len(o.chunks[chunk]) == 0 {
		o.chunks = slices.Delete(o.chunks, chunk, chunk+1)
	}
}

// after returns at most n of the strings greater than last; all of them if n is negative.
func (o *ordered) after(last string, n int) []string {
	out := []string{}
	if n == 0 {
		return out
	}
	chunk, at, found := o.find(last)
	if found {
		at++
	}
	for ; chunk < len(o.chunks); chunk, at = chunk+1, 0 {
		c := o.chunks[chunk][at:]
		if n >= 0 && len(c) >= n-len(out) {
			return append(out, c[:n-len(out)]...)
		}
		out = append(out, c...)
	}
	return out
}
