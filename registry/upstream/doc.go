// Package upstream asks other registries, for the cache in front of them.
package upstream
