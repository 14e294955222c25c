package engines

import (
	"fmt"
	"strings"
)

// values are the measured figures that the calculation below starts from.
type values struct {
	verdict, digest, tag, layer float64 // µs of a server's processor: of a verdict, of each GET, of a layer of 64 MiB
	head                        float64 // ms until a Head is answered
	headCPU                     float64 // µs of etcd's processors for it
	waiting                     float64 // requests of a Head, 64 at once
	images                      float64 // pushed per s
	writes, commits             float64 // of a push
	facts, load                 float64 // the largest number of facts, and s until they are loaded
	bytes                       float64 // of a fact in etcd
	memory, idle, member        float64 // MB: of a server with them and without, and of a member of etcd
}

// What the calculation is about: 1,000,000 tags in 200,000 repositories, each an image of its own, and nodes that pull
// one image each.
const (
	paperNodes    = 10_000
	paperImage    = 100.0 // MB, in three layers
	paperFacts    = 1e6 * (factsOfRepo / imagesOfRepo)
	paperReplicas = 3
	network       = 1.25 // GB/s of a replica: 10 Gbit/s
)

// paper returns the rows of storage/README.md that say what each part does.
func (v values) paper() string {
	var b strings.Builder
	row := func(part, load, arithmetic string, a ...any) {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", part, load, fmt.Sprintf(arithmetic, a...))
	}
	gb := paperNodes * paperImage / 1000
	seconds := gb / (paperReplicas * network)
	forBytes := gb * 1e9 / (64 << 20) * v.layer / 1e6
	forRequests := paperNodes * (v.tag + 5*v.digest) / 1e6
	heads, scale := paperReplicas*1000/v.head, paperFacts/v.facts
	index := (v.memory - v.idle) / 1000 * scale
	b.WriteString("| part | load | arithmetic |\n|---|---|---|\n")
	row("a node without the image", fmt.Sprintf("6 requests, %.0f MB", paperImage),
		"HEAD by tag; GET of the manifest, the config and 3 layers; of an index, one more. Layers that the node has "+
			"are not asked for: with 2 of them, of 80 MB, it is 4 requests and 20 MB")
	row("a node with the image", "1 HEAD by tag, or nothing",
		"nothing with `imagePullPolicy: IfNotPresent`. The cache is that of the container runtime; `trow node` has "+
			"none")
	row("all nodes", fmt.Sprintf("%s requests and %s GB; with the image %s HEADs", short(6*paperNodes), short(gb),
		short(paperNodes)), "%s × 6; %s × %.0f MB", short(paperNodes), short(paperNodes), paperImage)
	row("network of the replicas", short(seconds)+" s", "%s GB / (%d × %.2f GB/s)", short(gb), paperReplicas, network)
	row("processor of the replicas", fmt.Sprintf("%s core-seconds: %s cores in each during these %s s",
		short(forBytes+forRequests), short((forBytes+forRequests)/seconds/paperReplicas), short(seconds)),
		"a layer of 64 MiB takes %s ms, %s GB %s s; %s × (%s + 5 × %s) µs for the requests", short(v.layer/1000),
		short(gb), short(forBytes), short(paperNodes), short(v.tag), short(v.digest))
	row("bytes of S3", short(gb/seconds)+" GB/s", "a byte from S3 for each byte to a node: replicas keep no layers")
	row("requests to S3", short(paperNodes*15/seconds)+" per s",
		"a layer of 33 MB is read in 5 ranges, of 256 KiB and then four times as much each; the config is in memory: "+
			"%s × 3 × 5 / %s s. AWS allows 5,500 per s and prefix", short(paperNodes), short(seconds))
	row("reads of etcd", fmt.Sprintf("%s per s at most, however many nodes wait", short(heads)),
		"one `Head` at a time in each replica: %d / %s ms. Who comes while one is under way waits for the next: %s "+
			"ms at most. All nodes in one moment are %s `Head`s, as %s requests of 64 that wait share one",
		paperReplicas,
		short(v.head), short(2*v.head), short(paperNodes/v.waiting), short(v.waiting))
	row("processor of etcd", short(heads*v.headCPU/1e6)+
		" cores in three members, while all replicas ask without a pause",
		"%s per s × %s µs", short(heads), short(v.headCPU))
	row("database of etcd", short(paperFacts*v.bytes/(1<<30))+" of 8 GiB",
		"%.0f facts of an image (a manifest, 4 links, 5 places, a tag, what that has named) × 1,000,000 × %s bytes; "+
			"fragments and what is not compacted yet want as much again, so the default quota of 2 GiB is too small",
		paperFacts/1e6, short(v.bytes))
	row("memory of a member of etcd", short(v.member*scale/1000)+" GB", "%s MB × %s", short(v.member), short(scale))
	row("memory of a replica", short(index)+" GB for the index",
		"(%s − %s) MB × %s; `max-index` is 40 %% of the limit, so that has to be %s GB", short(v.memory), short(v.idle),
		short(scale), short(index/0.4))
	row("start of a replica", short(v.load*scale)+" s", "%s s × %s; the others serve meanwhile", short(v.load),
		short(scale))
	row("verdicts", short(paperNodes*v.verdict/1e6)+" core-seconds",
		"%s pods × %s µs, from memory in any replica, and nothing to etcd or S3. 300 pods per s, more than a "+
			"scheduler places, take %s %% of a core", short(paperNodes), short(v.verdict), short(300*v.verdict/1e4))
	row("pushes", short(v.images)+" images per s on this machine",
		"each is %s requests to S3 and %s commits in etcd, which all replicas share", short(v.writes), short(v.commits))
	return b.String()
}
