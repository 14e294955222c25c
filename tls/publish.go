package tls

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"trow/storage/files"
)

// ServeCA answers with the bundle in PEM, for clients to trust. A client that gets it over a connection that it does
// not trust yet must compare the fingerprint. On a nil Keeper the answer is 404.
func (k *Keeper) ServeCA(w http.ResponseWriter, _ *http.Request) {
	if k == nil {
		http.Error(w, "this server speaks plain HTTP and has no CA", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(k.CA()) // on an error the client has gone
}

// Summary says where the CA is and how to trust it, for people who push to host:port. It is empty for a nil Keeper.
func (k *Keeper) Summary(host string) string {
	if k == nil {
		return ""
	}
	return "  CA           https://" + host + "/ca.crt\n               SHA-256 " + k.Fingerprint() + "\n"
}

// CAFile is the file with the bundle on this machine; empty if it does not exist.
func (k *Keeper) CAFile() string {
	if k == nil {
		return ""
	}
	return k.caFile
}

// writeCAFile writes the bundle into CAFile. An error is logged.
func (k *Keeper) writeCAFile() {
	if k.caFile == "" || k.readOnly {
		return
	}
	if err := writeIfChanged(k.caFile, k.CA()); err != nil {
		k.log.Warn().Err(err).Msg("writing the CA's certificate for clients")
	}
}

// writeIfChanged replaces the file, readable for all, unless it has this content.
func writeIfChanged(path string, content []byte) error {
	if old, err := files.Read(path, files.MaxSize); err == nil && bytes.Equal(old, content) {
		return nil
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	return files.Write(root, filepath.Base(path), content, 0o644)
}

var notAfterDesc = prometheus.NewDesc("trow_tls_certificate_not_after_seconds",
	"When the server's own certificate expires, in Unix time.", nil, nil)

// Describe implements prometheus.Collector.
func (k *Keeper) Describe(to chan<- *prometheus.Desc) { to <- notAfterDesc }

// Collect implements prometheus.Collector. A nil Keeper has no metrics.
func (k *Keeper) Collect(to chan<- prometheus.Metric) {
	if k != nil {
		end := float64(k.NotAfter(Leaf).Unix())
		to <- prometheus.MustNewConstMetric(notAfterDesc, prometheus.GaugeValue, end)
	}
}
