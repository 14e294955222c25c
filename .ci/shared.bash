# shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR source=lib.bash
# shellcheck disable=SC2034,SC2154 # the variables of lib.bash and clients.bash
# Makes `server` and `stop_server` of lib.bash three replicas on shared engines, behind a round robin that sends each
# request to the next one. clients.bash sources it for the parts that .ci/replicas runs, which need no change for it.
# CI_ENDPOINTS are those of etcd; an S3 service listens on CI_S3 and has the bucket `bucket`; robin is in CI_WORK/bin.

eval "$(declare -f server | sed '1s/^server/one_server/')"
eval "$(declare -f stop_server | sed '1s/^stop_server/stop_one_server/')"

# replica DIR PLACE ARGUMENT… starts a server with its data in DIR, on the engines at a place of their own.
replica() {
  local dir=$1 place=$2
  shift 2
  one_server "$dir" --journal "etcd://$CI_ENDPOINTS/ci/$place" \
    --blobs "s3://bucket/$place?endpoint=http://$CI_S3&region=us-east-1&path-style=true" "$@"
}

# robin FILE URL… starts the round robin in front of replicas; from then on, it is the server that clients use.
robin() {
  local file=$1 deadline=$((SECONDS + 10))
  shift
  "$CI_WORK/bin/robin" "$file.crt" "$@" >"$file" 2>&1 </dev/null &
  ROBIN_PID=$!
  processes+=("$ROBIN_PID")
  until SERVER_URL=$(grep ^https "$file"); do
    ((SECONDS < deadline)) || die "the round robin does not start: $(<"$file")"
    sleep 0.05
  done
  SERVER_HOST=${SERVER_URL#*://} SERVER_CA=$file.crt
}

# server DIR ARGUMENT… starts three replicas. The data of the first one is in DIR, and all write one log.
server() {
  local dir=$1 i urls=()
  shift
  REPLICAS=()
  for i in '' .1 .2; do
    mkdir -p "$dir$i"
    [[ -z $i ]] || ln -s "$dir/log" "$dir$i/log"
    replica "$dir$i" "${work##*/}-${dir##*/}" "$@"
    REPLICAS+=("$SERVER_PID")
    urls+=("$SERVER_URL")
  done
  SERVER_LOG=$dir/log
  robin "$dir/robin" "${urls[@]}"
}

stop_server() {
  kill -TERM "$ROBIN_PID"
  wait "$ROBIN_PID" || true
  forget "$ROBIN_PID"
  for SERVER_PID in "${REPLICAS[@]}"; do
    stop_one_server "$1"
  done
}
