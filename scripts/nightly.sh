#!/usr/bin/env bash
# Fresh seeds, some of the mutants and the explorer, for as long as it is given: see docs/simulation.md.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
    cat <<'END'
usage: scripts/nightly.sh [--minutes N] [--log FILE] [--mutants N]

Builds the tree, then runs fresh seeds of the simulator on all cores but one, and beside them N mutants that
are drawn and the explorer within the bounds of `kontiki sim --explore`. One line of figures is appended to
FILE, and what failed, with its seed, below it.

    --minutes N   for so long (default 480)
    --log FILE    default target/nightly.log
    --mutants N   mutants that are drawn (default 10)

Exit code 0: nothing failed; 1: something did, or does not build; 2: usage.
END
}

fail() { echo "scripts/nightly.sh: $1" >&2; exit "${2:-1}"; }

minutes=480
log=target/nightly.log
mutants=10
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --minutes | --mutants)
            [[ ${2:-} =~ ^[0-9]+$ ]] || fail "$1 wants a number" 2
            if [ "$1" = --minutes ]; then minutes=$2; else mutants=$2; fi
            shift
            ;;
        --log)
            [ -n "${2:-}" ] || fail "--log wants a file" 2
            log=$2
            shift
            ;;
        *) fail "unknown word '$1'; see scripts/nightly.sh --help" 2 ;;
    esac
    shift
done

target=${CARGO_TARGET_DIR:-target}
cargo build --quiet --release --bin kontiki || fail "the tree does not build"
mkdir -p "$(dirname "$log")" || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
binary=$work/kontiki
cp "$target/release/kontiki" "$binary" || exit 1
end=$((SECONDS + minutes * 60))

# Runs fresh seeds, a few hundred at a time, until the time is over: NUMBER of the worker.
seeds() {
    local first
    : >"$work/seeds.$1"
    while [ $SECONDS -lt $end ]; do
        # 45 bits: no two nights meet.
        first=$(((RANDOM << 30 | RANDOM << 15 | RANDOM) * 1000))
        "$binary" sim --seed $first --seeds 200 --jobs 1 >"$work/out.$1" 2>&1
        grep -B 1 '^seed [0-9]*: FAILED' "$work/out.$1" >>"$work/failed"
        sed -n 's/^simulated seconds \([0-9]*\)$/\1/p' "$work/out.$1" >>"$work/seeds.$1"
    done
}

cores=$(nproc 2>/dev/null || echo 2)
workers=$((cores > 1 ? cores - 1 : 1))
: >"$work/failed"
for ((worker = 0; worker < workers; worker++)); do seeds $worker & done

caught=none
if [ "$mutants" -gt 0 ]; then
    mapfile -t drawn < <(scripts/mutants.sh --list | awk '{ print $1 }' | shuf -n "$mutants")
    scripts/mutants.sh "${drawn[@]}" >"$work/mutants" 2>"$work/mutants.err" || {
        grep -E 'SURVIVED|NO END' "$work/mutants" >>"$work/failed"
        cat "$work/mutants.err" >>"$work/failed"
    }
    survived=$(grep -cE 'SURVIVED|NO END' "$work/mutants")
    caught="$((${#drawn[@]} - survived)) of ${#drawn[@]}"
fi
explored=$("$binary" sim --explore 2>&1) || echo "$explored" >>"$work/failed"
states=$(sed -n 's/^states \([0-9]*\)$/\1/p' <<<"$explored")
wait

chunks=$(cat "$work"/seeds.* | wc -l)
simulated=$(cat "$work"/seeds.* | awk '{ sum += $1 } END { print sum + 0 }')
failed=$(grep -c 'FAILED' "$work/failed")
printf '%s commit %s: %d seeds, %d simulated hours, %d failed; mutants caught %s; explorer %s states\n' \
    "$(date -u +%Y-%m-%d)" "$(git rev-parse --short HEAD 2>/dev/null || echo '?')" \
    $((chunks * 200)) $((simulated / 3600)) "$failed" "$caught" "${states:-no}" >>"$log"
cat "$work/failed" >>"$log"
tail -n 1 "$log" | cut -c1-200
[ ! -s "$work/failed" ]
