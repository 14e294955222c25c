package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The peers that tables and ratios treat in a special way.
const (
	nameTrow  = "Trow"
	nameNginx = "nginx"
	nameLimit = "limit"
)

// peer is a server that can be measured.
type peer struct {
	name    string
	version string
	note    string // needed to understand its figures
	program string // its path
	missing string // why it cannot be measured
	// lacks returns why it does not support a scenario, or "". nil means a registry, which supports all but admission.
	lacks func(scenario string) string
	// launch writes its configuration and returns how to start it.
	launch func(p place) (command, error)
}

// place is where a server runs.
type place struct {
	dir    string // for configuration and logs
	data   string // the store
	addr   string // host:port, on loopback
	secure bool
	cert   string // files, PEM
	key    string
}

// command is how a server is started.
type command struct {
	args []string
	env  []string // in addition to that of this process
}

// unsupported returns why a peer is not measured in a task, or "".
func (p *peer) unsupported(t task) string {
	if p.lacks != nil {
		return p.lacks(t.scenario)
	}
	if t.scenario == admission {
		return "it is only a registry"
	}
	return ""
}

// bound reports whether it is a bound instead of a registry.
func (p *peer) bound() bool { return p.name == nameNginx || p.name == nameLimit }

// newPeers returns all peers, in the order of the columns.
func newPeers() []*peer {
	return []*peer{
		{name: nameTrow, lacks: func(string) string { return "" }, launch: launchTrow},
		{name: "docker-registry", launch: launchDistribution},
		{name: "distribution", launch: launchDistribution},
		{name: "zot", launch: launchZot, note: "its minimal build, without extensions"},
		{name: "olareg", launch: launchOlareg},
		{name: nameNginx, lacks: nginxLacks, launch: launchNginx,
			note: "serves the content as files; drops the body of " +
				"a review and answers with a recorded answer of Trow"},
		{name: nameLimit, lacks: limitLacks, launch: launchLimit,
			note: "receives, hashes and writes a blob, syncs the file, renames it, syncs the directory; nothing else"},
	}
}

func launchTrow(p place) (command, error) {
	args := []string{"serve", "--listen", p.addr, "--data-dir", p.data}
	if !p.secure {
		args = append(args, "--no-tls")
	}
	return command{args: args}, nil
}

// launchDistribution is for both versions: 2 and 3 read the same configuration.
func launchDistribution(p place) (command, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n"+
		"  cache: {blobdescriptor: inmemory}\n  delete: {enabled: true}\nhttp:\n  addr: %s\n", p.data, p.addr)
	if p.secure {
		fmt.Fprintf(&b, "  tls: {certificate: %q, key: %q}\n", p.cert, p.key)
	}
	path := filepath.Join(p.dir, "config.yml")
	// Version 3 sends traces to a collector by default.
	env := []string{"OTEL_TRACES_EXPORTER=none"}
	return command{[]string{"serve", path}, env}, os.WriteFile(path, []byte(b.String()), 0o600)
}

func launchZot(p place) (command, error) {
	host, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		return command{}, err
	}
	listen := map[string]any{"address": host, "port": port}
	if p.secure {
		listen["tls"] = map[string]string{"cert": p.cert, "key": p.key}
	}
	path := filepath.Join(p.dir, "config.json")
	return command{args: []string{"serve", path}}, writeJSON(path, map[string]any{
		"distSpecVersion": "1.1.1",
		"storage":         map[string]string{"rootDirectory": p.data},
		"http":            listen,
		"log":             map[string]string{"level": "info"},
	})
}

func launchOlareg(p place) (command, error) {
	host, port, err := net.SplitHostPort(p.addr)
	args := []string{"serve", "--addr", host, "--port", port, "--dir", p.data, "--api-delete"}
	if p.secure {
		args = append(args, "--tls-cert", p.cert, "--tls-key", p.key)
	}
	return command{args: args}, err
}

func limitLacks(scenario string) string {
	if scenario != pushLarge {
		return "it only receives blobs"
	}
	return ""
}

func launchLimit(p place) (command, error) {
	args := []string{"limit", p.addr, p.data}
	if p.secure {
		args = append(args, p.cert, p.key)
	}
	return command{args: args}, nil
}

// nginxReads lists the scenarios whose answers are files.
var nginxReads = []string{"blob-get-64MiB", "blob-get-4KiB", "manifest-get-tag", "manifest-head-tag",
	"manifest-get-digest", "blob-head-missing"}

func nginxLacks(scenario string) string {
	if scenario != admission && !slices.Contains(nginxReads, scenario) {
		return "it only serves files"
	}
	return ""
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
