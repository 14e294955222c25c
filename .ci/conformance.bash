# shellcheck shell=bash
# The conformance suite of the OCI distribution specification, for the parts that run it against a server. They source
# this file after lib.bash.

# suite VERSION runs the suite with everything enabled that is disabled by default at that version. OCI_DATA_SPARSE
# stays disabled: by design, this registry refuses a manifest that refers to blobs it does not have.
suite() {
  local results
  results=$(mktemp -d "$CI_WORK/conformance-$1.XXXXXX") # several parts run the suite
  env SSL_CERT_FILE="$SERVER_CA" \
    OCI_REGISTRY="$SERVER_HOST" OCI_TLS=enabled OCI_VERSION="$1" OCI_RESULTS_DIR="$results" \
    OCI_REPO1="conformance-$1/one" OCI_REPO2="conformance-$1/two" \
    OCI_API_BLOBS_UPLOAD_CANCEL=true OCI_API_BLOBS_DIGEST_HEADER=true \
    OCI_API_MANIFESTS_DIGEST_HEADER=true OCI_API_MANIFESTS_TAG_PARAM=true \
    OCI_DATA_SHA512=true OCI_DATA_SPARSE=false \
    conformance >"$results/out" 2>&1 || {
      grep -vE ': (Pass|Disabled)$' "$results/out" || true
      die "the suite failed"
    }
  sed -n '/^OCI Conformance Result/,$p' "$results/out" >"$results/summary"
  sed -n '/^API conformance/q; s/^./note: &/p' "$results/summary"
  # The suite exits with 0 even if it ran nothing, so its counts are checked.
  same Result "$(sed -n 's/^OCI Conformance Result: //p' "$results/summary")" Pass
  same FAIL "$(count FAIL)" 0
  same Error "$(count Error)" 0
  same Skip "$(count Skip)" 0
  same Disabled "$(count Disabled)" 0
  (($(count Pass) > 800)) || die "only $(count Pass) passes: the suite did not run completely"
  # Below the counts there is a line for each feature.
  same 'not passed' "$(not_passed)" ' Sparse Manifests.: Disabled'
}

# not_passed prints the features whose result is not Pass.
not_passed() {
  sed -n '/^API conformance/,$p' "$results/summary" | grep -E '\.\.:' | grep -vE ': +Pass$' | tr -s ' .'
}

# count STATUS prints a count of the summary.
count() { sed -nE "s/^ +$1\\.+: +([0-9]+)\$/\\1/p" "$results/summary"; }
