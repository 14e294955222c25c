// Package upstream is the client of other registries for the cache in front of them: it finds the upstream of an
// image's name, sends requests to it, and downloads each content once for all readers.
//
// # Words
//
//   - upstream: a registry whose images are cached here, or the part of it below a path; an entry of the setting
//     upstreams ([Entry], [Upstream]). [Upstreams] are all of them.
//   - host: that of an upstream as images name it, in the canonical form of package address: docker.io for every name
//     of Docker Hub. A repository of Docker Hub with one part is the one below library/.
//   - endpoint: a registry that answers for an upstream; they are tried in order. Docker Hub's is registry-1.docker.io.
//   - realm: the URL of a token server, which the challenge of an endpoint names.
//   - written: named in the settings, as endpoint, in realm: or in also:. All other hosts are from answers of upstreams
//     (redirects, realms) or, with upstream-any, from clients.
//   - internal: an address that is not of the Internet, or is one of the cluster's or the server's own. See [Guard].
//   - rate: how many manifests Docker Hub still serves, by its headers ratelimit-limit and ratelimit-remaining.
//   - question: what is asked about a tag, a manifest or a list, in one request or several. It goes on without the
//     client that has asked, because others may wait for the same answer.
//   - download: a content that a [Fetcher] fetches; its [Reader]s get the bytes as they arrive. In the code, a flight.
//   - leftover: what has arrived of a content before its download has failed.
//   - spool: a file for the bytes of an upload that cannot be read while it grows (see storage.Growing).
//
// # Invariants
//
//  1. No connection is made to an internal address unless its host is written. The address is checked when the socket
//     connects, so a name server cannot answer differently after the check. At an address of this machine, a written
//     host reaches only the port that is written with it.
//  2. A login is sent to the endpoint for which it is set, and to a realm that is https and at the same registrable
//     domain (publicsuffix.org) or in realm:; never to another origin (scheme, host and port) after a redirect. Only
//     insecure: true allows plain HTTP, for endpoints whose URL has it. A token without a login may be fetched from any
//     realm that is https.
//  3. Errors have no credentials, and no text that an upstream has sent but a known code; see [Error].
//  4. ErrNotFound is returned only if every endpoint says so. A slow, busy or broken endpoint is never ErrNotFound.
//  5. A manifest has the digest by which it was requested, or that the upstream names. It has at most 4 MiB.
//  6. A content is downloaded once at a time. The download does not end when a client disconnects, as long as others
//     read it or it is nearly done: at most a quarter, or 8 MiB, are missing. Otherwise it goes on for 10 s, in case a
//     client comes back.
//  7. No reader gets the last 64 KiB of a content before its digest is verified; if that fails, every reader gets an
//     error, and nothing is kept.
//  8. No more bytes of a content are read than its descriptor says, where one is known; see Download.Size. Bytes of
//     the cache are reserved before they are fetched, in steps if the length is not known. Downloads, the spool,
//     tokens and the hosts of upstream-any are bounded, and so are questions with the memory of their answers; see
//     [Upstream.Begin].
//  9. Retry-After of an endpoint is respected, up to 5 minutes. An endpoint that fails three times in a row gets no
//     requests for pauses of 2 s to a minute, and then one as a probe, which alone ends the probe.
//
// # What it does not do
//
// It does not decide who may read, what is kept and what is evicted, or how old a tag may be: the registry does, by
// Upstreams.Readers, Upstream.Fresh and Keeps. It does not record what it stores: Download.Commit does. A caller that
// joins a download of another upstream must ask its own for the digest and the size before it serves bytes. It never
// fetches the urls of foreign layers, and converts nothing.
//
// With a proxy in the environment, the proxy connects. Then this package can refuse only addresses that are written in
// a URL, and not those of names, so upstream-any needs upstream-proxy-filters.
//
// # What a download leaves
//
// What has arrived before a download fails, or the server ends, is kept for the next one: as an upload of the storage
// where that can be continued (Download.Resume), otherwise as a file of the spool. The digest finds both. Nothing says
// that these bytes are right but the digest of the whole, so they are hashed again; if it is wrong, the download begins
// anew, once, unless a reader has got some of them: then its reads fail. A leftover keeps its room in the cache, gives
// way to a download that needs it, and is deleted after an hour. There are 32 at most, and in addition, after a crash,
// those of the downloads that were under way, which the storage deletes when they expire.
//
// # Why NAT64 is refused as a whole
//
// 64:ff9b::/96 leads to IPv4 addresses, which may be those of the cluster, through a gateway whose translation is not
// known here. In an IPv6-only cluster, where DNS64 gives such addresses to names without IPv6 addresses, endpoints work
// because they are written; hosts of redirects have to be in also:.
package upstream
