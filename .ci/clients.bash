# shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR source=lib.bash
# Functions that the parts with real clients share: images, the trust and state of clients, and the commands that are
# the same in all parts.
source "$(dirname "${BASH_SOURCE[0]}")/lib.bash"

work=$CI_WORK/${CI_PART:-${0##*/}} # directory of this part
mkdir "$work"
if [[ -n ${CI_ENDPOINTS:-} ]]; then
  # shellcheck source=shared.bash
  source "$(dirname "${BASH_SOURCE[0]}")/shared.bash"
fi

# ---- The images

# hello ARCH builds the program that each image has.
hello() {
  mkdir -p "$work/hello"
  printf 'package main\n\nfunc main() { println("hello") }\n' >"$work/hello/main.go"
  CGO_ENABLED=0 GOOS=linux GOARCH=$1 go build -trimpath -o "$work/hello/hello-$1" "$work/hello/main.go"
}

# own_home makes the clients use directories of this part instead of those of the user. It must be called after hello,
# which needs the caches of Go.
own_home() {
  export HOME=$work/home XDG_CONFIG_HOME=$work/home/.config XDG_CACHE_HOME=$work/home/.cache
  export XDG_DATA_HOME=$work/home/.local
  export XDG_RUNTIME_DIR=$work/run TMPDIR=$work/tmp
  export DOCKER_CONFIG=$work/docker REGISTRY_AUTH_FILE=$work/auth.json REGCTL_CONFIG=$work/regctl.json
  mkdir -p "$HOME" "$XDG_RUNTIME_DIR" "$TMPDIR" "$DOCKER_CONFIG"
  mapfile -t own_store < <(store "$work/store")
  log_out
}

# blob LAYOUT MEDIATYPE FILE puts a file into an OCI layout and prints its descriptor.
blob() {
  local sum
  sum=$(sha256sum "$3" | cut -d' ' -f1)
  mkdir -p "$1/blobs/sha256"
  cp "$3" "$1/blobs/sha256/$sum"
  jq -nc --arg t "$2" --arg d "sha256:$sum" --argjson s "$(stat -c %s "$3")" '{mediaType: $t, digest: $d, size: $s}'
}

# root DIR ARCH TEXT creates a root file system: a program, and a text that distinguishes the images.
root() {
  mkdir -p "$1"
  cp "$work/hello/hello-$2" "$1/hello"
  printf '%s\n' "$3" >"$1/text"
}

# layout DIR TEXT ARCH… creates an OCI layout with an image for these platforms, tagged v1.
layout() {
  local dir=$1 text=$2 arch diff layer config manifest oci=application/vnd.oci.image tmp=$1.tmp
  shift 2
  mkdir -p "$dir" "$tmp"
  for arch in "$@"; do
    root "$tmp/$arch" "$arch" "$text"
    tar -C "$tmp/$arch" -cf "$tmp/layer" hello text
    diff=sha256:$(sha256sum "$tmp/layer" | cut -d' ' -f1)
    gzip -n "$tmp/layer"
    layer=$(blob "$dir" $oci.layer.v1.tar+gzip "$tmp/layer.gz")
    jq -nc --arg a "$arch" --arg d "$diff" '{architecture: $a, os: "linux", config: {Entrypoint: ["/hello"]},
      rootfs: {type: "layers", diff_ids: [$d]}}' >"$tmp/config"
    config=$(blob "$dir" $oci.config.v1+json "$tmp/config")
    jq -nc --arg t $oci.manifest.v1+json --argjson c "$config" --argjson l "$layer" \
      '{schemaVersion: 2, mediaType: $t, config: $c, layers: [$l]}' >"$tmp/manifest"
    manifest=$(blob "$dir" $oci.manifest.v1+json "$tmp/manifest")
    jq -c --arg a "$arch" '. + {platform: {os: "linux", architecture: $a}}' <<<"$manifest" >>"$tmp/manifests"
    rm "$tmp/layer.gz"
  done
  jq -sc --arg t $oci.index.v1+json '{schemaVersion: 2, mediaType: $t, manifests: .}' "$tmp/manifests" >"$tmp/index"
  blob "$dir" $oci.index.v1+json "$tmp/index" |
    jq -c '{schemaVersion: 2, manifests: [. + {annotations: {"org.opencontainers.image.ref.name": "v1"}}]}' \
      >"$dir/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/oci-layout"
  rm -r "$tmp"
}

# intact FILE passes if the name of a file is the digest of its content: …/sha256/0a1b….
intact() { same "content of $1" "$("$(basename "$(dirname "$1")")sum" "$1" | cut -d' ' -f1)" "$(basename "$1")"; }

# digest_in LAYOUT prints the digest of the image in a layout, after verifying all blobs. Some clients list the
# children of an index next to it; then the index is the entry with a name.
digest_in() {
  local f
  for f in "$1"/blobs/*/*; do
    intact "$f"
  done
  jq -er '[.manifests[] | {digest, name: .annotations["org.opencontainers.image.ref.name"]}]
    | if length > 1 then map(select(.name)) else . end
    | if length == 1 then .[0].digest else error("not one image") end' "$1/index.json"
}

# ---- The clients: trusted CAs and places for their state

# trust makes the clients trust the server that was started last: by a file for podman, skopeo and buildah, and by a
# variable for those that use Go's TLS.
trust() {
  mkdir -p "$HOME/.config/containers/certs.d/$SERVER_HOST"
  cp "$SERVER_CA" "$HOME/.config/containers/certs.d/$SERVER_HOST/ca.crt"
  export SSL_CERT_FILE=$SERVER_CA
}

# store DIR prints options that place containers/storage in DIR; vfs works on every file system. podman needs a
# runroot with a short name.
store() { printf '%s\n' --root "$1/root" --runroot "$CI_WORK/run" --storage-driver vfs; }
podman() { command podman --tmpdir "$CI_WORK/run/libpod" "$@"; }

# log_out forgets all logins.
log_out() {
  printf '{}' >"$REGISTRY_AUTH_FILE"
  rm -f "$DOCKER_CONFIG/config.json" "$REGCTL_CONFIG"
}

# ---- CLIENT_login USER PASSWORD

skopeo_login() { skopeo login -u "$1" --password-stdin "$SERVER_HOST" <<<"$2"; }
podman_login() { podman "${own_store[@]}" login -u "$1" --password-stdin "$SERVER_HOST" <<<"$2"; }
buildah_login() { buildah "${own_store[@]}" login -u "$1" --password-stdin "$SERVER_HOST" <<<"$2"; }
crane_login() { crane auth login -u "$1" --password-stdin "$SERVER_HOST" <<<"$2"; }
oras_login() { oras login -u "$1" --password-stdin "$SERVER_HOST" <<<"$2"; }
regctl_login() { regctl registry login -u "$1" --pass-stdin "$SERVER_HOST" <<<"$2"; }

# ---- CLIENT_push LAYOUT REFERENCE pushes an image, for clients that push a layout unchanged.

skopeo_push() { skopeo copy --all --preserve-digests "oci:$1:v1" "docker://$2"; }
oras_push() { oras cp --from-oci-layout "$1:v1" "$2"; }
regctl_push() { regctl image copy "ocidir://$1:v1" "$2"; }

# crane pushes index.json itself, so it is replaced by the index of the image.
crane_push() {
  local index
  index=$(digest_in "$1")
  rm -rf "$1.crane"
  cp -r "$1" "$1.crane"
  cp "$1/blobs/${index/://}" "$1.crane/index.json"
  crane push --index "$1.crane" "$2"
}

# ---- CLIENT_pull REFERENCE DIR pulls an image into DIR and prints its digest.

# skopeo's dir: keeps the manifest unchanged, Docker's as well. Its files are named by their digests.
skopeo_pull() {
  local f
  mkdir -p "$2"
  skopeo copy --all "docker://$1" "dir:$2/sha256" >&2
  for f in "$2"/sha256/*.manifest.json; do
    mv "$f" "${f%.manifest.json}"
  done
  for f in "$2"/sha256/*; do
    [[ $f == */manifest.json || $f == */version ]] || intact "$f"
  done
  printf 'sha256:%s\n' "$(sha256sum "$2/sha256/manifest.json" | cut -d' ' -f1)"
}
crane_pull() {
  crane pull --format oci "$1" "$2" >&2
  digest_in "$2"
}
oras_pull() {
  oras cp --to-oci-layout "$1" "$2:v1" >&2
  digest_in "$2"
}
regctl_pull() {
  regctl image copy "$1" "ocidir://$2:v1" >&2
  digest_in "$2"
}

# podman and buildah pull the image of one platform, each time into an empty store, and record the digest that they
# requested; podman also records that of the platform's image. The text shows which image it is.
podman_pull() {
  local store
  mapfile -t store < <(store "$2")
  podman "${store[@]}" pull -q "docker://$1" >&2
  podman "${store[@]}" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" | sed 's/.*@//'
  cat "$(podman "${store[@]}" image mount "$1")/text" >"$2.text"
  podman "${store[@]}" image unmount "$1" >&2
}
buildah_pull() {
  local store container
  mapfile -t store < <(store "$2")
  container=$(buildah "${store[@]}" from -q --pull-always "docker://$1")
  buildah "${store[@]}" images --digests --no-trunc --format '{{.Digest}}' "$1"
  cat "$(buildah "${store[@]}" mount "$container")/text" >"$2.text"
  buildah "${store[@]}" umount "$container" >&2
}

# ---- State of the registry

# manifest_head REPOSITORY REFERENCE
manifest_head() { ask -I -H 'Accept: */*' "$SERVER_URL/v2/$1/manifests/$2" | tr -d '\r'; }
status() { manifest_head "$1" "$2" | sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p'; }
header() { manifest_head "$2" "$3" | sed -n "s/^$1: //Ip"; }
digest_of() { header docker-content-digest "$1" "$2"; }

# ---- Clients of a registry with `anonymous: create`. A part defines CLIENT_put WHICH REFERENCE, which pushes the image
# first or second.

tag=1.0.0 # helm needs a version

# moves CLIENT WHICH REFERENCE passes if a push that would move the tag is refused, with the remedy where the client
# shows it.
moves() {
  local before
  before=$(digest_of "${3#*/}" "$tag")
  refused "$1_put" "$2" "$3:$tag" 2>&1 | tee "$work/refused"
  grep -E "$(move_message "$1")" "$work/refused" >"$work/message" || die "the output has no $(move_message "$1")"
  tail -n 1 "$work/message" | sed 's/^/note: /' | cut -c1-300
  same 'the tag' "$(digest_of "${3#*/}" "$tag")" "$before"
}

# move_message CLIENT prints a pattern for that message.
move_message() {
  case $1 in
    ctr) printf '403 Forbidden' ;;
    *) printf 'tag %s exists and names sha256:' "$tag" ;;
  esac
}

# creates CLIENT REPOSITORY passes if a client without a login pushes a new tag and the same image again, and cannot
# move the tag.
creates() {
  local repo=$SERVER_HOST/$2/app
  "$1_put" first "$repo:$tag"
  same 'a new tag' "$(status "$2/app" "$tag")" 200
  "$1_put" first "$repo:$tag"
  moves "$1" second "$repo"
}

# creates_beside CLIENT is the same where there are logins, so that the registry asks for one; with one the tag moves.
creates_beside() {
  local before
  creates "$1" "$1-beside"
  before=$(digest_of "$1-beside/app" "$tag")
  "$1_login" robot "$(<"$work/pusher")"
  "$1_put" second "$SERVER_HOST/$1-beside/app:$tag"
  [[ $(digest_of "$1-beside/app" "$tag") != "$before" ]] || die 'the tag was not moved with a login'
}

# forget_logins is log_out, for a part whose clients have no more logins than that.
forget_logins() { log_out; }

# create_part CLIENT… runs these checks, and those of CREATE_ALSO where there are no logins: the names of functions,
# with spaces.
create_part() {
  local client also
  server "$work/create" --anonymous create
  trust
  for client in "$@"; do
    check "$client, create: new tag, same again, no move" creates "$client" "$client"
  done
  for also in "${CREATE_ALSO[@]}"; do
    check "create: $also" "${also// /_}"
  done
  check 'create: a robot is created' make_pusher "$work/create/data"
  for client in "$@"; do
    check "$client, create, with logins: the same, and a move with a login" creates_beside "$client"
    forget_logins
  done
  stop_server create
}
CREATE_ALSO=()

# make_pusher DATA-DIR creates a robot that may push everywhere, and writes its token to the file pusher.
make_pusher() { "$TROW" token create ci --data-dir "$1" --repository '**' --actions pull,push >"$work/pusher"; }
