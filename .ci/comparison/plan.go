package main

import (
	"fmt"
	"slices"
	"strings"
)

// The transports.
const (
	plain   = "plain" // HTTP/1.1 without TLS
	overTLS = "tls"   // HTTP/1.1 over TLS; Trow does not support HTTP/2, which is slower with every server here
)

// row identifies what a figure measures.
type row struct {
	Scenario    string `json:"scenario"`
	Connections int    `json:"connections"`
	Transport   string `json:"transport"`
}

func (r row) String() string {
	return fmt.Sprintf("%s c%d %s", r.Scenario, r.Connections, r.Transport)
}

// task is one call of `trow bench`: one scenario, with a row for each number of connections.
type task struct {
	scenario    string
	transport   string
	connections []int
}

func (t task) rows() (rows []row) {
	for _, c := range t.connections {
		rows = append(rows, row{t.scenario, c, t.transport})
	}
	return rows
}

func (t task) String() string {
	return fmt.Sprintf("%s %s c%s", t.scenario, t.transport, t.numbers())
}

// numbers returns the list of connections in the form of the command line.
func (t task) numbers() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(t.connections), " ", ","), "[]")
}

// secure reports whether the server uses TLS.
func (t task) secure() bool { return t.transport != plain }

// pushes reports whether the task writes to the store.
func (t task) pushes() bool {
	return slices.Contains([]string{pushLarge, "blob-push-chunked", pushImage, "mount", "manifest-delete"}, t.scenario)
}

// The scenarios that are treated in a special way.
const (
	pushLarge = "blob-push-64MiB"
	pushImage = "image-push-small"
	admission = "admission"
)

// everything is the plan of the full run: all scenarios over plain HTTP, where the server's own cost shows best, and
// over TLS those that a cluster and the API server use most.
var everything = []task{
	{"manifest-get-tag", plain, []int{1, 8, 64}},
	{"manifest-head-tag", plain, []int{8}},
	{"manifest-get-digest", plain, []int{8}},
	{"blob-get-4KiB", plain, []int{1, 8}},
	{"blob-get-64MiB", plain, []int{1, 8}},
	{"blob-head-missing", plain, []int{8}},
	{"tags-list", plain, []int{8}},
	{"catalog", plain, []int{8}},
	{"referrers", plain, []int{8}},
	{pushLarge, plain, []int{1, 4}},
	{"blob-push-chunked", plain, []int{1}},
	{pushImage, plain, []int{1, 8}},
	{"mount", plain, []int{8}},
	{"manifest-delete", plain, []int{8}},
	{"manifest-get-tag", overTLS, []int{1, 8}},
	{"blob-get-4KiB", overTLS, []int{8}},
	{"blob-get-64MiB", overTLS, []int{1, 8}},
	{admission, overTLS, []int{1, 16}},
	{pushLarge, overTLS, []int{4}},
	{pushImage, overTLS, []int{8}},
}

// checked is the plan of the check: what is most frequent in use and nginx supports as well.
var checked = []task{
	{"blob-get-64MiB", plain, []int{8}},
	{"manifest-get-tag", plain, []int{8}},
	{"blob-get-4KiB", plain, []int{8}},
	{"blob-get-64MiB", overTLS, []int{8}},
	{"manifest-get-tag", overTLS, []int{8}},
	{admission, overTLS, []int{16}},
}

// choose returns the tasks of a plan that were asked for. Errors: a scenario that is in no task.
func choose(plan []task, only string) ([]task, error) {
	if only == "" {
		return plan, nil
	}
	var chosen []task
	for name := range strings.SplitSeq(only, ",") {
		before := len(chosen)
		for _, t := range plan {
			if t.scenario == name {
				chosen = append(chosen, t)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("only: unknown scenario %.40q; see trow bench --list", name)
		}
	}
	return chosen, nil
}
