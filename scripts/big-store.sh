#!/usr/bin/env bash
# How one node fares with far more data than memory: resident memory while it is loaded, read at random and scanned,
# how long writes wait at a steady load, and how long a start takes after the process was killed. A long run that a
# person starts; the log and the store together take about 2.5 times the data on disk.
#
#   scripts/big-store.sh [KEYS [RATE [DIR [FLAGS...]]]]     KEYS values of 1 KiB (default 8388608, 8 GiB), written at RATE a second
#                                                (default 10000), in a new directory below DIR (default: the system's);
#                                                FLAGS are for kontiki serve
set -u
keys=${1:-8388608} rate=${2:-10000} top=${3:-${TMPDIR:-/tmp}}
flags=("${@:4}")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
binary=${KONTIKI_BIN:-${CARGO_TARGET_DIR:-$here/target}/release/kontiki}
port=${KONTIKI_PORT:-7171}
[ -x "$binary" ] || (cd "$here" && cargo build --release) || exit 1
# The variables of this script are no settings of the node.
unset KONTIKI_PORT KONTIKI_BIN
dir=$(mktemp -d "$top/big-store-XXXXXX") || exit 1
node=
finish() {
    [ -z "$node" ] || { kill -9 "$node" 2>/dev/null; wait "$node" 2>/dev/null; }
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

start() {
    "$binary" serve --data "$dir/data" --listen "127.0.0.1:$port" --memtable 32MiB --cache 64MiB \
        ${flags[@]+"${flags[@]}"} 2>"$dir/node.log" &
    node=$!
    # Answered when a linearizable read is.
    until "$binary" cli -a "127.0.0.1:$port" count x y >/dev/null 2>&1; do
        kill -0 "$node" 2>/dev/null || { cat "$dir/node.log" >&2; exit 1; }
    done
}
start

# The largest resident set since the last phase, as the system keeps it; clearing it needs the right to.
peak() { awk '/^VmHWM/ { printf "%d MiB", $2 / 1024 }' "/proc/$node/status"; }
phase() {
    local name=$1
    shift
    { echo 5 >"/proc/$node/clear_refs"; } 2>/dev/null
    echo "== $name"
    "$@" || { echo "$name failed" >&2; cat "$dir/node.log" >&2; exit 1; }
    echo "peak resident memory: $(peak)"
}
bench() { "$binary" bench -a "127.0.0.1:$port" --value 1KiB --keys "$keys" "$@"; }
scan() { "$binary" cli -a "127.0.0.1:$port" dump | wc -c | awk '{ print $1 " bytes scanned" }'; }

phase "load, $rate writes a second" bench --mix put --once --rate "$rate" --seconds 3600
phase "random reads" bench --mix get --stored --seconds 60
phase "scan of everything" scan
phase "random overwrites, $rate a second" bench --mix put --rate "$rate" --seconds 60
echo "== killed and started again"
kill -9 "$node"
wait "$node" 2>/dev/null
du -sh "$dir/data/log" | sed "s|$dir/data/||"
from=$(date +%s%N)
start
echo "served after $(($(date +%s%N) / 1000000 - from / 1000000)) ms"
grep recovered "$dir/node.log" | sed 's/.* recovered/recovered/'
echo "== on disk"
du -sh "$dir/data/store" "$dir/data/log" | sed "s|$dir/data/||"
exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && grep -a amplification <&3 | grep -v '^#'
