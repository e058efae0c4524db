#!/usr/bin/env bash
# Fresh seeds, some of the mutants, the explorer and a fresh sieve, for as long as it is given: see docs/simulation.md.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
    cat <<'END'
usage: scripts/nightly.sh [--minutes N] [--log FILE] [--mutants N] [--sieve N]

Builds the tree, then runs fresh seeds of the simulator on all cores but one, and beside them N mutants that
are drawn, the explorer within the bounds of `kontiki sim --explore`, and in what is left of the time a
sample of scripts/sieve.sh that no other night has drawn. One line of figures is appended to FILE, below it what
failed, with its seed, and the changes that survived the sieve. The last of these may be tried for some minutes more.

    --minutes N   for so long (default 480)
    --log FILE    default target/nightly.log
    --mutants N   mutants that are drawn (default 10)
    --sieve N     changes that are drawn for the sieve (default 500; those for which there is no time are left out)

Exit code 0: nothing failed, whatever survived the sieve; 1: something did, or does not build; 2: usage.
END
}

fail() { echo "scripts/nightly.sh: $1" >&2; exit "${2:-1}"; }

minutes=480
log=target/nightly.log
mutants=10
sieve=500
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --minutes | --mutants | --sieve)
            [[ ${2:-} =~ ^[0-9]+$ ]] || fail "$1 wants a number" 2
            case $1 in
                --minutes) minutes=$2 ;;
                --mutants) mutants=$2 ;;
                --sieve) sieve=$2 ;;
            esac
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

# 45 bits: no two nights meet.
fresh() { echo $((RANDOM << 30 | RANDOM << 15 | RANDOM)); }

# Runs fresh seeds, a few hundred at a time, until the time is over: NUMBER of the worker.
seeds() {
    local first
    : >"$work/seeds.$1"
    while [ $SECONDS -lt $end ]; do
        first=$(($(fresh) * 1000))
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

sifted=no
left=$(((end - SECONDS) / 60))
if [ "$sieve" -gt 0 ] && [ $left -gt 0 ]; then
    scripts/sieve.sh --self-test >"$work/sieve" 2>&1 || { echo 'FAILED sieve'; cat "$work/sieve"; } >>"$work/failed"
    scripts/sieve.sh --sample "$sieve" --draw "$(fresh)" --seed $(($(fresh) * 1000)) --minutes $left \
        >"$work/sieve" 2>"$work/sieve.err" || { echo 'FAILED sieve'; cat "$work/sieve.err"; } >>"$work/failed"
    sifted=$(sed -n 's/^\([0-9]* changes: .*\)/\1/p' "$work/sieve")
fi
wait

chunks=$(cat "$work"/seeds.* | wc -l)
simulated=$(cat "$work"/seeds.* | awk '{ sum += $1 } END { print sum + 0 }')
failed=$(grep -c 'FAILED' "$work/failed")
printf '%s commit %s: %d seeds, %d simulated hours, %d failed; mutants caught %s; explorer %s states; sieve: %s\n' \
    "$(date -u +%Y-%m-%d)" "$(git rev-parse --short HEAD 2>/dev/null || echo '?')" \
    $((chunks * 200)) $((simulated / 3600)) "$failed" "$caught" "${states:-no}" "${sifted:-no}" >>"$log"
tail -n 1 "$log"
cat "$work/failed" >>"$log"
if [ -f "$work/sieve" ]; then grep '^SURVIVED' "$work/sieve" >>"$log"; fi
[ ! -s "$work/failed" ]
