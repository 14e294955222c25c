// Package upstream asks other registries, for the cache in front of them: it finds the upstream of an image's name,
// speaks to it, and downloads each content once for all who want it.
//
// # Words
//
//   - upstream: a registry whose images are cached here, or the part of it below a path; an entry of the setting
//     upstreams ([Entry], [Upstream]). [Upstreams] are all of them.
//   - host: that of an upstream as images name it, in the one form of package address: docker.io for every name of
//     Docker Hub. A repository of Docker Hub with one part is the one below library/.
//   - endpoint: a registry that answers for an upstream. They are asked in order. Docker Hub's is registry-1.docker.io.
//   - realm: the URL of a token server, which the challenge of an endpoint names.
//   - written: named in the settings, as endpoint, in realm: or in also:. All other hosts are from answers of upstreams
//     (redirects, realms) or, with upstream-any, from clients.
//   - internal: an address that is not of the Internet, or is one of the cluster's or the server's own. See [Guard].
//   - rate: how many manifests Docker Hub still gives, by its headers ratelimit-limit and ratelimit-remaining.
//   - download: a content on its way through a [Fetcher]; its [Reader]s get the bytes as they arrive.
//   - spool: a file for the bytes of an upload that cannot be read while it grows (see storage.Growing).
//
// # Invariants
//
//  1. No connection is made to an internal address unless its host is written. The address is checked when the socket
//     connects, so that no later answer of a name server counts. Of this machine, a written host has only its port.
//  2. A login is sent to the endpoint beside which it is written, and to a realm that is https and at the same
//     registrable domain (publicsuffix.org) or in realm:; never to where a redirect leads. Only insecure: true allows
//     plain HTTP, for endpoints whose URL has it. A token without a login may be fetched from any realm that is https.
//  3. Errors have no credentials, and no text that an upstream has sent but a known code; see [Error].
//  4. That something does not exist is reported only if every endpoint says so. Slow, busy and broken are never
//     ErrNotFound.
//  5. A manifest has the digest that it was asked for with, or that the upstream names. It has at most 4 MiB.
//  6. A content is downloaded once at a time, and no client's leaving ends that while others read, or when it is nearly
//     done: when at most a quarter or 8 MiB are missing. Otherwise it goes on for 10 s, in case one comes back.
//  7. No reader gets the last 64 KiB of a content before its digest was found right; if it is not, every reader gets an
//     error, and nothing is kept.
//  8. Bytes of the cache are reserved before they are fetched, in steps where the length is not known. Downloads, the
//     spool, tokens and the hosts of upstream-any are bounded.
//  9. An endpoint that asks to be left alone is (Retry-After, up to 5 minutes); one that fails three times in a row is
//     asked by one request at a time, with pauses of 2 s to a minute.
//
// # What it does not do
//
// It does not decide who may read, what is kept and what is evicted, or how old a tag may be: the registry does, by
// Upstreams.Readers, Upstream.Fresh and Keeps. It does not record what it stores: Download.Commit does. A client that
// joins a download of another upstream must have asked its own for the digest and the size first. It never fetches the
// urls of foreign layers, and converts nothing.
//
// With a proxy in the environment it is the proxy that connects: here only addresses that are written out in a URL are
// refused then, so upstream-any needs upstream-proxy-filters.
//
// What was received of a download is kept while it is interrupted, not when it has failed or the server has ended: the
// next one begins anew. A reader far behind the received bytes waits for them.
//
// # Why NAT64 is refused as a whole
//
// 64:ff9b::/96 leads to IPv4 addresses, those of the cluster among them, through a gateway that may translate in ways
// that are not known here. In a cluster with IPv6 alone, where names without IPv6 addresses get such ones, endpoints
// work because they are written; hosts of redirects have to be named in also:.
package upstream
