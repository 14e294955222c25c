// Package maintenance owns the data directory of a server and the work on it that goes on beside the requests.
package maintenance
