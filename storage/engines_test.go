package storage_test

import (
	"testing"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
	"trow/storage/storagetest/enginetest"
)

// journals are the engines that the Index is tested over. Each returns what opens a journal at a new place; to open it
// again is a restart.
var journals = map[string]func(t *testing.T) func() storage.Journal{
	"memory": memoryPlace, "bolt": enginetest.BoltPlace,
}

func memoryPlace(*testing.T) func() storage.Journal {
	j := memory.NewJournal()
	return func() storage.Journal { return j }
}

var (
	openBolt = enginetest.Bolt
	openDisk = enginetest.Disk
	wantTags = storagetest.WantTags
)
