// Package cache tests the cache of other registries against real ones, Distribution and zot, with a proxy in between
// that counts and fails. It is a module of its own because it needs nothing of the product but its program.
package cache
