package tls

import (
	"bytes"
	"encoding/pem"
	"path/filepath"
	"slices"
	"time"

	"trow/storage/files"
)

// A server in a cluster keeps its CA in a Secret, which an uninstall deletes; the volume stays. The volume has the key
// of a CA only if the server once ran on it without a cluster: the key is not copied there, because a user who reads a
// volume or its snapshots must not be able to sign for the registry. So after a reinstall there is a new CA in most
// cases. The bundle of the old one, which is public, stays on the volume, so that the log can say so.

// fromVolume returns the CA that the volume has from before, nil if no CA there can sign.
func (k *Keeper) fromVolume(now time.Time) *authority {
	if k.volume == "" {
		return nil
	}
	content, err := files.Read(Dir(filepath.Join(k.volume, "tls")).path(caFile), files.MaxSize)
	if err != nil {
		return nil
	}
	ca, err := parseAuthority(content)
	if err == nil {
		err = validAt(ca.signer.Leaf, now)
	}
	if err != nil {
		k.log.Warn().Err(err).Msg("the CA on the volume cannot be used; a new one is made, which clients must trust")
		return nil
	}
	k.log.Info().Msg("the CA of this volume is used again")
	return ca
}

// compareVolume logs that clients trust another CA: that of the server that used the volume before.
func (k *Keeper) compareVolume() {
	if k.volume == "" {
		return
	}
	before, err := files.Read(filepath.Join(k.volume, "ca.crt"), files.MaxSize)
	if err != nil {
		return // a new volume
	}
	now := certificates(k.CA())
	for _, c := range certificates(before) {
		if slices.ContainsFunc(now, func(n []byte) bool { return bytes.Equal(c, n) }) {
			return
		}
	}
	k.log.Warn().Str("fingerprint", k.Fingerprint()).Str("store", k.store.String()).
		Msg("this volume was served with another CA before, which is gone: a new one was made, and workstations have " +
			"to trust it (nodes follow by themselves); to keep the CA in the next reinstall, keep what is in the store")
}

// certificates returns the blocks of a bundle.
func certificates(bundle []byte) (all [][]byte) {
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		all = append(all, block.Bytes)
	}
	return all
}
