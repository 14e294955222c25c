# shellcheck shell=bash
# shellcheck disable=SC2034 # the variables that server sets are for the parts
# What the parts of the CI share: named checks, tools, servers, cleaning up. A part sources this file, uses what
# it needs and ends with `finish`. A part can be run alone: `bash .ci/run conformance`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# CI_WORK is where everything of one run lies; .ci/run makes and removes it.
: "${CI_WORK:?run this by .ci/run}"

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/trow-ci
TROW=$CI_WORK/bin/trow

# ---- Saying

say() { printf '%s\n' "$*"; }

# die ends the part: it cannot go on.
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# seconds is a clock for measuring, with a fraction.
seconds() { printf '%s\n' "$EPOCHREALTIME"; }

# since BEGIN prints the seconds that have passed.
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", b - a }'; }

# ---- Named checks

failures=0

# check NAME COMMAND… runs a command, mostly a function of the part, and counts it. What it prints is shown only if
# it fails, but for lines that begin with "note:". It runs in a subshell, with set -e in force, so a function may
# change directories and variables; it must not be called where set -e is off (in an if, before ||). Its own variables
# have long names because the function sees them.
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
    say "$check_name" >>"$CI_WORK/failed"
    failures=$((failures + 1))
  fi
  rm -f "$check_log"
}

# finish ends a part.
finish() {
  ((failures == 0)) || die "$failures checks of this part failed"
  exit 0
}

# same WHAT GOT WANTED compares two texts.
same() {
  [[ "$2" == "$3" ]] || die "$1: got $2, wanted $3"
}

# below WHAT NUMBER LIMIT UNIT notes a figure and fails if it is not below the limit.
below() {
  say "note: $1: $2 $4, must be below $3 $4"
  awk -v a="$2" -v b="$3" 'BEGIN { exit !(a < b) }'
}

# refused COMMAND… passes if the command fails. As in check, set -e stays in force for it.
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

# debian PACKAGE… installs what is missing.
debian() {
  local missing=() p
  for p in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  debian_lists
  DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends "${missing[@]}" >"$CI_WORK/apt.log" 2>&1 ||
    die "apt-get install failed: $(tail -n 30 "$CI_WORK/apt.log")"
}

# debian_lists fetches apt's lists, once a run.
debian_lists() {
  [[ -e $CI_WORK/apt-updated ]] && return 0
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  touch "$CI_WORK/apt-updated"
}

# tool NAME MODULE@VERSION builds a Go program, once for each version and toolchain, and puts it on PATH.
tool() {
  local dir
  dir=$CACHE/bin/$(go env GOVERSION)/$1@${2##*@}
  if [[ ! -x $dir/$1 ]]; then
    say "building $1 ${2##*@}"
    mkdir -p "$dir"
    GOBIN=$dir go install "$2"
  fi
  PATH=$dir:$PATH
}

# What the parts take from Debian and from the Go module proxy. gcc is for the race detector.
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
big_tools() { debian skopeo curl jq; }
limits_tools() { debian curl strace; }
faults_tools() { debian strace; }
versus_tools() { debian nginx-light; }

# ---- The product

# build_product makes the binary as it is released, static, for both architectures. The parts run this machine's.
build_product() {
  local arch
  [[ -x $TROW ]] && return 0
  for arch in amd64 arm64; do
    CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -o "$CI_WORK/bin/trow-$arch" .
  done
  cp "$CI_WORK/bin/trow-$(go env GOARCH)" "$TROW"
}

processes=() # what this part has started and not yet seen end

# server DIR ARGUMENT… starts the product on a free port of the loopback with its data in DIR, and waits until it is
# ready. It sets SERVER_PID, SERVER_URL, SERVER_HOST (host:port), SERVER_CA, SERVER_LOG and SERVER_START (seconds
# until /readyz answered 200).
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
    kill -0 "$SERVER_PID" 2>/dev/null || die "the server ended at its start: $(tail -n 5 "$SERVER_LOG")"
    ((SECONDS < deadline)) || die "the server is not ready after 30 s: $(tail -n 5 "$SERVER_LOG")"
    sleep 0.01
  done
  SERVER_HOST=${SERVER_URL#*://}
  same /readyz "$(ask -o /dev/null -w '%{http_code}' "$SERVER_URL/readyz")" 200
  SERVER_START=$(since "$begin")
}
SERVER_UNDER=() # a command to start the server under

# ask is curl for the server that was started last, with its CA.
ask() { curl -sS --cacert "$SERVER_CA" "${ASK_LOGIN[@]}" "$@"; }
ASK_LOGIN=() # -u and a login, where one is needed

# stop_server stops the server that was started last, and checks that it ends well. Not to be called by check:
# only the shell that started the server can wait for it.
stop_server() {
  local rc=0
  kill -TERM "$SERVER_PID"
  wait "$SERVER_PID" || rc=$?
  forget "$SERVER_PID"
  ((rc == 0)) || tail -n 5 "$SERVER_LOG"
  check "server stops ($1)" same 'exit code' "$rc" 0
}

# memory KEY prints a figure of the server's /proc status in MB: VmRSS now, VmHWM at its highest.
memory() { awk -v key="$1:" '$1 == key { printf "%.1f\n", $2 * 1024 / 1e6 }' "/proc/$SERVER_PID/status"; }

# forget PID: it has ended, so its number may be somebody else's by now.
forget() {
  local p rest=()
  for p in "${processes[@]}"; do
    [[ $p == "$1" ]] || rest+=("$p")
  done
  processes=("${rest[@]}")
}

# clean_up ends what the part left running, by its number.
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
