package limit

import (
	"fmt"
	"strings"

	"trow/registry/glob"
	"trow/registry/namespace"
	"trow/registry/size"
	"trow/storage"
)

// Quotas reads quotas. An error names the quota and the key.
func Quotas(all []Quota) ([]storage.Quota, error) {
	var read []storage.Quota
	for i, q := range all {
		repos, err := glob.Compile(q.Repositories...)
		switch {
		case err != nil:
			return nil, fmt.Errorf("quotas: quota %d: repositories: %w", i+1, err)
		case len(repos) == 0:
			return nil, fmt.Errorf("quotas: quota %d: repositories: at least one pattern is needed; ** matches all", i+
				1)
		case q.Bytes.Sign() <= 0:
			return nil, fmt.Errorf("quotas: quota %d: bytes: want a number of bytes above 0, such as 10Gi", i+1)
		}
		name := strings.Join(q.Repositories, ", ")
		read = append(read, storage.Quota{Name: name, Match: matcher(repos), Bytes: q.Bytes.Value()})
	}
	return read, nil
}

// matcher matches repositories that count for a quota: the content of other registries below f/ has a bound of its own
// (cache-size).
func matcher(repos glob.Set) func(string) bool {
	return func(repo string) bool { return !namespace.Within(repo) && repos.Match(repo) }
}

// OverQuota returns a message about an exceeded quota, for the client that pushed.
func OverQuota(e storage.Excess) string {
	var parts []string
	var more, remedy string
	if e.Open > 0 {
		parts = append(parts, size.Format(e.Open)+" in uploads that are not finished")
		remedy = "finish or cancel the uploads, "
	}
	if e.Waiting > 0 {
		parts = append(parts, size.Format(e.Waiting)+" that is deleted and waits to be collected")
		remedy += "wait for the next collection or ask for one (trow gc), "
	}
	if len(parts) > 0 {
		more = " (of these, " + strings.Join(parts, " and ") + ")"
	}
	return fmt.Sprintf("the quota of the repositories %s is %s (setting quotas); they hold %s%s, and this would add "+
		"%s: %sdelete what is no longer needed (blobs count until they are collected), or ask for a larger quota",
		e.Name, size.Format(e.Bytes), size.Format(e.Used), more, size.Format(e.Added), remedy)
}
