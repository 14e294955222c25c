package upstream

// MayRun returns which images of a repository may run by the entry that counts for it, and the host and the path of
// that entry. host and repo are in their canonical form. It is empty if no entry names the repository, or the entry
// does not say it. allow and fetch do not concern what allow: and deny: of the entry exclude: that is not cached, so
// they would let images run that do not come through this registry. It takes no lock.
func (u *Upstreams) MayRun(host, repo string) (may MayRun, entry string) {
	if u == nil {
		return "", ""
	}
	for _, up := range *u.now.Load() { // the longest path comes first, see Set
		if up.Host != host || !below(repo, up.Path) {
			continue
		}
		if entry = up.Host; up.Path != "" {
			entry += "/" + up.Path
		}
		if (up.MayRun == MayRunAllow || up.MayRun == MayRunFetch) && up.fits(repo) != nil {
			return "", entry
		}
		return up.MayRun, entry
	}
	return "", ""
}
