# Shared by tests/demo and tests/serve: an image file, a daemon on it, and its end. Sourced by bash.
# Sets up BIN (where ocelotd and ocelot are), DIR (where everything is kept), SOCKET.
export PATH=$PATH:/usr/sbin:/sbin
say() { printf '\n== %s\n' "$*"; }
die() { echo "error: $*" >&2; exit 1; }

BIN=$(cd "$1" 2>/dev/null && pwd) || die "no programs in $1: run make build"
[ -x "$BIN/ocelotd" ] && [ -x "$BIN/ocelot" ] || die "no ocelotd or ocelot in $BIN: run make build"
mkdir -p "${OCELOT_DEMO_DIR:-demo}"
DIR=$(cd "${OCELOT_DEMO_DIR:-demo}" && pwd)
# A socket's path is short; a working directory's need not be.
RUN=$(mktemp -d /tmp/ocelot.XXXXXX)
SOCKET=$RUN/ocelotd.sock
export OCELOT_SERVER=unix:$SOCKET
daemon=

ocelot() { "$BIN/ocelot" "$@"; }

# format IMAGE MIB: a local OCFS2 volume with all features, in a sparse file
format() {
  rm -f "$1"; truncate -s "${2}M" "$1"
  mkfs.ocfs2 -q -x -F -M local -N 2 -b 4096 -C 4096 -L demo --fs-feature-level=max-features "$1" || die "mkfs.ocfs2 failed"
}

# configure IMAGE [TCP]: a configuration with that one volume
configure() {
  cat > "$RUN/ocelotd.toml" <<END
name = "demo"
[listen]
unix = "$SOCKET"
tcp = [${2:+\"$2\"}]
[log]
filter = "info"
[[device]]
name = "disk"
type = "image-file"
path = "$1"
engine = "aio"
[[volume]]
device = "disk"
name = "demo"
END
}

# start: the daemon, and waits until it serves
start() {
  "$BIN/ocelotd" --config "$RUN/ocelotd.toml" >> "$DIR/ocelotd.log" 2>&1 &
  daemon=$!
  for _ in $(seq 300); do
    if ocelot --quiet health >/dev/null 2>&1; then return; fi
    kill -0 "$daemon" 2>/dev/null || { tail -n 20 "$DIR/ocelotd.log" >&2; die "ocelotd ended"; }
    sleep 0.1
  done
  tail -n 20 "$DIR/ocelotd.log" >&2
  die "ocelotd does not answer"
}

# stop: ends the daemon as an operator does
stop() {
  kill -TERM "$daemon"
  wait "$daemon" || { tail -n 20 "$DIR/ocelotd.log" >&2; die "ocelotd ended with status $?"; }
  daemon=
}

clean_up() {
  [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null || true
  rm -rf "$RUN"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
