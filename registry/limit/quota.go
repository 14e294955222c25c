package limit

import (
	"fmt"
	"strings"

	"trow/registry/glob"
	"trow/storage"
)

// Quota bounds what the repositories of some patterns hold together. A repository that several name counts for each.
type Quota struct {
	Repositories []string `mapstructure:"repositories"`
	Bytes        Size     `mapstructure:"bytes"`
}

// Quotas reads quotas. Errors name the quota and what is wrong with it.
func Quotas(all []Quota) ([]storage.Quota, error) {
	var read []storage.Quota
	for i, q := range all {
		repos, err := glob.Compile(q.Repositories...)
		switch {
		case err != nil:
			return nil, fmt.Errorf("quotas: quota %d: repositories: %w", i+1, err)
		case len(repos) == 0:
			return nil, fmt.Errorf("quotas: quota %d: repositories: say which share it; ** is all", i+1)
		case q.Bytes <= 0:
			return nil, fmt.Errorf("quotas: quota %d: bytes: say how many they may hold together, as 10Gi", i+1)
		}
		read = append(read, storage.Quota{Name: strings.Join(q.Repositories, ", "), Match: repos.Match, Bytes: int64(q.Bytes)})
	}
	return read, nil
}

// OverQuota says what an excess is about, for whoever has pushed.
func OverQuota(e storage.Excess) string {
	return fmt.Sprintf("the quota of the repositories %s is %s (setting quotas); they hold %s, and this would add %s: delete what is not needed, "+
		"which counts for blobs when they are collected, or have the quota raised", e.Name, Size(e.Bytes), Size(e.Used), Size(e.Added))
}
