#!/usr/bin/env bash
# The storage engine beside RocksDB's db_bench (Debian package rocksdb-tools): the same workloads, with the same sizes of
# keys, values, memtable and cache, one after the other in the order A B B A, and the ratios: of the mean times, and of the best runs, which noise
# touches less.
#
#   scripts/engine-bench.sh [--keys N] [--reads N] [--rounds N] [--dir DIR] [--only A,B..]
#
# --keys (default 1000000) are written, --reads (default as many) read; a round runs each of the two twice. DIR (default
# ./.engine-bench) needs room for a store of each. Both write without a log of their own, without compression, from one
# thread, with data in the page cache of the system, and both wait for their background between two workloads.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

keys=1000000 reads='' rounds=1 dir=$PWD/.engine-bench only=fillseq,fillrandom,readrandom,readmissing,seekrandom,overwrite
memtable=$((32 << 20)) cache=$((64 << 20))

fail() { echo "scripts/engine-bench.sh: $*" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        --keys) keys=${2:-} ;;
        --reads) reads=${2:-} ;;
        --rounds) rounds=${2:-} ;;
        --dir) dir=${2:-} ;;
        --only) only=${2:-} ;;
        *) fail "unknown word '$1'" ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value"
    shift 2
done
reads=${reads:-$keys}
for number in "$keys" "$reads" "$rounds"; do
    case $number in ''|*[!0-9]*|0*) fail "'$number' is not a whole number above 0" ;; esac
done
command -v db_bench >/dev/null 2>&1 || fail "there is no db_bench; it is in the package rocksdb-tools"
[ ! -e "$dir" ] || fail "$dir exists; name another with --dir"

cargo build --release --quiet || fail "the build failed"
kontiki=${CARGO_TARGET_DIR:-target}/release/kontiki
mkdir -p "$dir" || exit 1
trap 'rm -rf "$dir"' EXIT

# Every fill begins a new store, in both; db_bench is told to wait for its background behind each workload.
theirs_list=${only//,/,waitforcompaction,},waitforcompaction

# Each prints lines "name microseconds": the mean time of an operation.
ours() {
    "$kontiki" bench --engine --dir "$dir/ours" --workloads "$only" --keys "$keys" --reads "$reads" --value 256 \
        --memtable "$memtable" --cache "$cache" | tee -a "$dir/ours.log" | awk '$3 == "ops/s" { print $1, $4 }'
}

theirs() {
    db_bench --db="$dir/theirs" --benchmarks="$theirs_list" --num="$keys" --reads="$reads" --key_size=16 --value_size=256 \
        --write_buffer_size="$memtable" --cache_size="$cache" --compression_type=none --disable_wal=1 --bloom_bits=10 \
        --threads=1 2>"$dir/theirs.err" | tr '\r' '\n' | awk '$4 == "micros/op" { print $1, $3 }'
    rm -rf "$dir/theirs"
}

run() {
    printf '%s %s\n' "$(date +%T)" "$1" >&2
    "$1" | sed "s/^/$1 /" | tee -a "$dir/results" >&2
    [ "${PIPESTATUS[0]}" -eq 0 ] || fail "$1 failed: $(tail -n 3 "$dir/$1.err" 2>/dev/null)"
}

for _ in $(seq "$rounds"); do
    for which in ours theirs theirs ours; do run "$which"; done
done

echo "$keys keys of 16 bytes, values of 256 bytes, memtable 32 MiB, cache 64 MiB, $((2 * rounds)) runs each"
awk -v names="$only" '
    { time[$1, $2] += $3; runs[$1, $2]++; value = 1e6 / $3
      if (!(($1, $2) in best) || value > best[$1, $2]) best[$1, $2] = value
      if (!(($1, $2) in worst) || value < worst[$1, $2]) worst[$1, $2] = value }
    END {
        printf "%-12s %10s %21s %10s %21s %7s %9s\n", "", "kontiki/s", "from..to", "rocksdb/s", "from..to", "ratio", "of bests"
        n = split(names, name, ",")
        for (i = 1; i <= n; i++) {
            a = "ours" SUBSEP name[i]; b = "theirs" SUBSEP name[i]
            if (!time[a] || !time[b]) { printf "%-12s missing\n", name[i]; bad = 1; continue }
            printf "%-12s %10.0f %10.0f..%-9.0f %10.0f %10.0f..%-9.0f %7.2f %9.2f\n", name[i], 1e6 * runs[a] / time[a], worst[a],
                best[a], 1e6 * runs[b] / time[b], worst[b], best[b], (time[b] / runs[b]) / (time[a] / runs[a]),
                best[a] / best[b]
        }
        exit bad
    }' "$dir/results"
