// Package manifests has what brings Trow onto a cluster.
//
// Trow is the Kubernetes manifest; README says how to apply it. The package decides nothing: the names and
// ports in the manifest are the defaults of the settings, which a test compares.
package manifests

import _ "embed"

// Trow is trow.yaml.
//
//go:embed trow.yaml
var Trow []byte
