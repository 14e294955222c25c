// Package engines tests the engines of package storage that talk to a server against real servers. It is a module of
// its own, so that what only these tests need is no dependency of the product.
package engines
