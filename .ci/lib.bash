# shellcheck shell=bash
# shellcheck disable=SC2034 # the parts use the variables that server sets
# Functions that the parts of the CI share: named checks, tools, servers, cleanup. A part sources this file and ends
# with `finish`. To run a single part: `bash .ci/run conformance`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# CI_WORK is the directory for all files of a run; .ci/run creates and removes it.
: "${CI_WORK:?run this with .ci/run}"

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/trow-ci
TROW=$CI_WORK/bin/trow

# ---- Output

say() { printf '%s\n' "$*"; }

# die MESSAGE prints a message and ends the part.
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# seconds prints the time in seconds, with a fraction.
seconds() { printf '%s\n' "$EPOCHREALTIME"; }

# since BEGIN prints the seconds that have passed.
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", b - a }'; }

# ---- Named checks

failures=0

# check NAME COMMAND… runs a command, usually a function of the part, and counts the result. Its output is shown only
# if it fails, except for lines that start with "note:". It runs in a subshell with set -e, so a function may change
# the directory and variables. check must not be called where set -e is off (in an if, before ||). Its variables have
# long names because the function sees them.
check() {
  local check_name=$1 check_log check_begin check_code
  shift
  check_log=$(mktemp "$CI_WORK/check.XXXXXX")
  check_begin=$(seconds)
  set +e
  (
    set -e
    "$@"
  ) >"$check_log" 2>&1 </dev/null
  check_code=$?
  set -e
  if ((check_code == 0)); then
    printf 'ok    %s (%s s)\n' "$check_name" "$(since "$check_begin")"
    sed -n 's/^note: /        /p' "$check_log"
    say "$check_name" >>"$CI_WORK/passed"
  else
    printf 'FAIL  %s (%s s): exit code %d\n' "$check_name" "$(since "$check_begin")" "$check_code"
    tail -n 200 "$check_log" | sed 's/^/        /'
    say "$check_name$(failed_tests "$check_log")" >>"$CI_WORK/failed"
    {
      say "$check_name:"
      { grep -B 8 -A 8 -e '--- FAIL' "$check_log" || cat "$check_log"; } | tail -n 40 | cut -c1-200 | sed 's/^/    /'
    } >>"$CI_WORK/reasons"
    failures=$((failures + 1))
  fi
  rm -f "$check_log"
}

# failed_tests LOG prints ": " and the tests that failed, of the first ten, as the output of go test names them.
failed_tests() {
  grep -oE '(--- FAIL: |^panic: test timed out|^FAIL[[:space:]]+trow)[^ (]*' "$1" | sed 's/^--- FAIL: //' | sort -u |
    head -n 10 | paste -sd ' ' - | sed 's/^\(.\)/: \1/' || true
}

# finish ends a part; it fails if a check failed.
finish() {
  ((failures == 0)) || die "$failures checks of this part failed"
  exit 0
}

# same WHAT GOT WANT fails unless two texts are equal.
same() {
  [[ "$2" == "$3" ]] || die "$1: got $2, want $3"
}

# below WHAT NUMBER LIMIT UNIT prints a figure and fails unless it is below the limit.
below() {
  say "note: $1: $2 $4, want below $3 $4"
  awk -v a="$2" -v b="$3" 'BEGIN { exit !(a < b) }'
}

# refused COMMAND… passes if the command fails. As in check, set -e is on while it runs.
refused() {
  local refused_code
  set +e
  (
    set -e
    "$@"
  )
  refused_code=$?
  set -e
  ((refused_code != 0)) || die "not refused: $*"
}

# ---- Tools

# thrice COMMAND… runs a command that downloads, up to three times: one failure of the network must not fail a run.
thrice() { "$@" || { sleep 2 && "$@"; } || { sleep 10 && "$@"; }; }

# modules DIR… downloads what the packages of Go modules and their tests need.
modules() {
  local dir
  for dir in "$@"; do
    thrice go -C "$dir" list -deps -test ./... >/dev/null
  done
}

# debian PACKAGE… installs the packages that are missing.
debian() {
  local missing=() p
  for p in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  debian_lists
  DEBIAN_FRONTEND=noninteractive \
    thrice apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends "${missing[@]}" \
    >"$CI_WORK/apt.log" 2>&1 ||
    die "apt-get install failed: $(tail -n 30 "$CI_WORK/apt.log")"
}

# debian_lists fetches the lists of apt once per run.
debian_lists() {
  [[ -e $CI_WORK/apt-updated ]] && return 0
  thrice apt-get -o DPkg::Lock::Timeout=300 update -qq
  touch "$CI_WORK/apt-updated"
}

# tool NAME MODULE@VERSION builds a Go program, once for each version and toolchain, and adds it to PATH.
tool() {
  local dir
  dir=$CACHE/bin/$(go env GOVERSION)/$1@${2##*@}
  if [[ ! -x $dir/$1 ]]; then
    say "building $1 ${2##*@}"
    mkdir -p "$dir"
    GOBIN=$dir thrice go install "$2"
  fi
  PATH=$dir:$PATH
}

# The tools that each part needs, from Debian and from the Go module proxy. The race detector needs gcc.
test_tools() { debian gcc libc6-dev; }
lint_tools() {
  debian shellcheck
  tool staticcheck honnef.co/go/tools/cmd/staticcheck@v0.8.2
}
conformance_tools() {
  debian curl
  tool conformance github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111
}
clients_tools() {
  debian skopeo podman buildah curl jq
  tool crane github.com/google/go-containerregistry/cmd/crane@v0.22.1
  tool oras oras.land/oras/cmd/oras@v1.3.6
  tool regctl github.com/regclient/regclient/cmd/regctl@v0.11.7
}
logins_tools() {
  clients_tools
  debian docker.io containerd apache2-utils
}
helm_tools() { tool helm helm.sh/helm/v4/cmd/helm@v4.3.1; }
ko_tools() {
  clients_tools
  tool ko github.com/google/ko@v0.19.1
}
cosign_tools() {
  clients_tools
  tool cosign github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5
}

# go install refuses BuildKit, whose go.mod has exclude directives, so it is a tool of the module .ci/buildkitd.
buildkit_tools() {
  local dir version
  clients_tools
  debian runc
  version=$(cd .ci/buildkitd && go list -m -f '{{.Version}}' github.com/moby/buildkit)
  dir=$CACHE/bin/$(go env GOVERSION)/buildkitd@$version
  if [[ ! -x $dir/buildkitd ]]; then
    say "building buildkitd $version"
    mkdir -p "$dir"
    (cd .ci/buildkitd && CGO_ENABLED=0 thrice go build -trimpath -o "$dir/" tool)
  fi
  PATH=$dir:$PATH
}

# go install refuses etcd as well: its modules replace each other. etcdutl restores backups.
engines_tools() {
  local dir version
  debian iproute2
  version=$(cd .ci/engines/etcd && go list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3)
  dir=$CACHE/bin/$(go env GOVERSION)/etcd@$version
  ETCD=$dir/etcd ETCDUTL=$dir/etcdutl
  if [[ ! -x $ETCD || ! -x $ETCDUTL ]]; then
    say "building etcd and etcdutl $version"
    mkdir -p "$dir"
    (
      cd .ci/engines/etcd
      CGO_ENABLED=0 thrice go build -trimpath -o "$ETCD" go.etcd.io/etcd/server/v3
      CGO_ENABLED=0 thrice go build -trimpath -o "$ETCDUTL" go.etcd.io/etcd/etcdutl/v3
    )
  fi
}
# cache_tools builds registries in the versions of .ci/comparison: Distribution and olareg, and zot with its sync, which
# not every module proxy has; then ZOT is empty. CACHE_ZOT names a zot that was built from its source instead.
cache_tools() {
  debian iproute2
  DISTRIBUTION=$(peer distribution '') || die 'Distribution does not build'
  OLAREG=$(peer olareg '') || die 'olareg does not build'
  ZOT=${CACHE_ZOT:-}
  [[ -z ${CACHE_README:-} || -n $ZOT ]] || ZOT=$(peer zot 'sync,containers_image_openpgp') || say 'zot does not build'
}

# peer NAME TAGS builds a registry of .ci/comparison with build tags, once, and prints the path of the program.
peer() {
  local path package version
  read -r _ path package version _ < <(sed -n "/{\"$1\", /s/[{\",]/ /gp" .ci/comparison/obtain.go)
  program "$1" "$path" "$package" "$version" "$2"
}

# program NAME MODULE PACKAGE VERSION TAGS builds a program, once, and prints its path. It is built within a module of
# its own that requires this version alone: go install refuses some, whose go.mod has replace directives.
program() {
  local name=$1 path=$2 package=$3 version=$4 tags=$5 dir work
  dir=$CACHE/bin/$(go env GOVERSION)/$name${tags:+-${tags%%,*}}@$version
  if [[ ! -x $dir/$name ]]; then
    say "building $name $version" >&2
    work=$(mktemp -d "$CI_WORK/$name.XXXXXX")
    (
      set -e
      cd "$work"
      go mod init peer
      go mod edit -require "$path@$version"
      CGO_ENABLED=0 thrice go build -mod=mod -trimpath -tags "$tags" -o "$name" "$path/$package"
      mkdir -p "$dir"
      mv "$name" "$dir/"
    ) >"$work.log" 2>&1 || {
      tail -n 1 "$work.log" >&2
      return 1
    }
    rm -rf "$work"
  fi
  printf '%s\n' "$dir/$name"
}

# minio_tools and seaweedfs_tools are S3 servers of the long run.
minio_tools() { tool minio github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c; }
seaweedfs_tools() {
  local weed
  weed=$(program weed github.com/seaweedfs/seaweedfs weed v0.0.0-20261109003541-7506e5f91cd6 '')
  PATH=$(dirname "$weed"):$PATH
}
big_tools() { debian skopeo curl jq; }
limits_tools() { debian curl strace; }
faults_tools() { debian strace; }
replicas_tools() { logins_tools; }
s3_tools() { tool versitygw github.com/versity/versitygw/cmd/versitygw@v1.8.0; }
versus_tools() { debian nginx-light; }

# ---- The product

# build_product builds the static binary of a release for both architectures. The parts run that of this machine.
build_product() {
  local arch
  [[ -x $TROW ]] && return 0
  for arch in amd64 arm64; do
    CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -o "$CI_WORK/bin/trow-$arch" .
  done
  cp "$CI_WORK/bin/trow-$(go env GOARCH)" "$TROW"
}

processes=() # started by this part and still running

# server DIR ARGUMENT… starts the server on a free port of loopback with its data in DIR, and waits until it is ready.
# It sets SERVER_PID, SERVER_URL, SERVER_HOST (host:port), SERVER_CA, SERVER_LOG and SERVER_START (seconds until
# /readyz answered 200).
server() {
  local dir=$1 begin deadline
  shift
  mkdir -p "$dir"
  SERVER_CA=$dir/data/ca.crt
  SERVER_LOG=$dir/log
  : >"$dir/out"
  begin=$(seconds)
  "${SERVER_UNDER[@]}" "$TROW" serve --listen 127.0.0.1:0 --data-dir "$dir/data" "$@" \
    >"$dir/out" 2>>"$SERVER_LOG" </dev/null &
  SERVER_PID=$!
  processes+=("$SERVER_PID")
  deadline=$((SECONDS + 30))
  until SERVER_URL=$(sed -n 's/^ *listens on *//p' "$dir/out") && [[ -n $SERVER_URL ]]; do
    kill -0 "$SERVER_PID" 2>/dev/null || die "the server ended during its start: $(tail -n 5 "$SERVER_LOG")"
    ((SECONDS < deadline)) || die "the server is not ready after 30 s: $(tail -n 5 "$SERVER_LOG")"
    sleep 0.01
  done
  SERVER_HOST=${SERVER_URL#*://}
  same /readyz "$(ask -o /dev/null -w '%{http_code}' "$SERVER_URL/readyz")" 200
  SERVER_START=$(since "$begin")
}
SERVER_UNDER=() # a command that starts the server, such as strace

# ask ARGUMENT… is curl with the CA of the server that was started last.
ask() { curl -sS --cacert "$SERVER_CA" "${ASK_LOGIN[@]}" "$@"; }
ASK_LOGIN=() # -u and a login, if one is needed

# stop_server NAME stops the server that was started last, and checks its exit code. It must not be called by check:
# only the shell that started the server can wait for it.
stop_server() {
  local rc=0
  kill -TERM "$SERVER_PID"
  wait "$SERVER_PID" || rc=$?
  forget "$SERVER_PID"
  ((rc == 0)) || tail -n 5 "$SERVER_LOG"
  check "server stops ($1)" same 'exit code' "$rc" 0
}

# memory KEY prints a value of the server's /proc status in MB: VmRSS is the current memory, VmHWM the peak.
memory() { awk -v key="$1:" '$1 == key { printf "%.1f\n", $2 * 1024 / 1e6 }' "/proc/$SERVER_PID/status"; }

# forget PID removes a process that has ended from processes: its ID may belong to another process soon.
forget() {
  local p rest=()
  for p in "${processes[@]}"; do
    [[ $p == "$1" ]] || rest+=("$p")
  done
  processes=("${rest[@]}")
}

# clean_up ends the processes that the part left running, by their IDs.
clean_up() {
  local p
  for p in "${processes[@]}"; do
    kill -CONT "$p" 2>/dev/null || true
    kill -KILL "$p" 2>/dev/null || true
  done
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
