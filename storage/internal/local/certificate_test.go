package local_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"trow/storage/internal/local"
)

func TestCertificateRemedy(t *testing.T) {
	for want, err := range map[string]error{
		"the clock of this machine": x509.CertificateInvalidError{Reason: x509.Expired},
		"for this name":             x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"},
		"set the-ca to":             x509.UnknownAuthorityError{},
	} {
		err = fmt.Errorf("handshake: %w", &tls.CertificateVerificationError{Err: err})
		if got := local.CertificateRemedy(err, "the-ca"); !strings.Contains(got, want) {
			t.Errorf("%v: %q; want %q", err, got, want)
		}
	}
	if got := local.CertificateRemedy(errors.New("reset"), "the-ca"); got != "" {
		t.Errorf("another error: %q", got)
	}
}
