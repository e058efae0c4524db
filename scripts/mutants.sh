#!/usr/bin/env bash
# Plants classic bugs one by one and shows that the simulator finds each: see docs/simulation.md.
# A simulator that catches nothing proves nothing.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
    cat <<'END'
usage: scripts/mutants.sh [FLAGS] [NAME...]

Applies each patch of scripts/mutants/ to a copy of the tree, builds it and runs seeds of the
simulator until one fails. What is planted in src/server/ runs on threads and on no seed: for that, real
processes are recorded and replayed (tests/integration/recording.rs). At the end the unchanged copy must pass 100 times as many seeds.
NAME is a mutant's name or number, as --list prints it; with names the unchanged copy is not run.

    --list        print number, name and bug of every mutant
    --check       only see that every patch still applies (fast)
    --clean       only run the unchanged copy
    --seeds N     seeds that a mutant may survive (default 2000)
    --markdown    print the table in Markdown, for docs/simulation.md

The copy and its build live in mutants/ below CARGO_TARGET_DIR (by default target/).
Exit code 0: all were caught; 1: one survived, the unchanged copy failed, or a patch does not apply;
2: usage.
END
}

fail() { echo "scripts/mutants.sh: $1" >&2; exit "${2:-1}"; }

seeds=2000
mode=run
markdown=no
names=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --list) mode=list ;;
        --check) mode=check ;;
        --clean) mode=clean ;;
        --markdown) markdown=yes ;;
        --seeds)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--seeds wants a number" 2
            seeds=$2
            shift
            ;;
        -*) fail "unknown flag '$1'; see scripts/mutants.sh --help" 2 ;;
        *) names+=("$1") ;;
    esac
    shift
done

patches=(scripts/mutants/[0-9]*.patch)
[ -e "${patches[0]}" ] || fail "no patches in scripts/mutants/"
root=$PWD

# 07-length-before-term
label_of() { basename "$1" .patch; }

# The patches that were named, or all.
selected() {
    local patch label name
    if [ ${#names[@]} -eq 0 ]; then
        printf '%s\n' "${patches[@]}"
        return
    fi
    for name in "${names[@]}"; do
        local found=no
        for patch in "${patches[@]}"; do
            label=$(label_of "$patch")
            if [ "$name" = "$label" ] || [ "$name" = "${label#*-}" ] || [ "$name" = "${label%%-*}" ]; then
                printf '%s\n' "$patch"
                found=yes
            fi
        done
        [ $found = yes ] || fail "no mutant is called '$name'; see --list" 2
    done
}
chosen=$(selected) || exit $?
mapfile -t chosen <<<"$chosen"

# Git looks for a repository around the copy, and would then leave out files that it does not track.
apply() {
    local dir=$1
    shift
    (cd "$dir" && GIT_CEILING_DIRECTORIES=$(dirname "$PWD") GIT_DIR=/dev/null git apply "$@")
}

if [ $mode = list ]; then
    for patch in "${chosen[@]}"; do
        printf '%-34s %s\n' "$(label_of "$patch")" "$(head -n 1 "$patch")"
    done
    exit 0
fi

if [ $mode = check ]; then
    broken=0
    for patch in "${chosen[@]}"; do
        if ! apply . --check "$root/$patch"; then
            echo "scripts/mutants.sh: $patch does not apply any more" >&2
            broken=$((broken + 1))
        fi
    done
    [ $broken -eq 0 ] || fail "$broken of ${#chosen[@]} patches do not apply: plant the bug again in today's code"
    echo "${#chosen[@]} mutants apply"
    exit 0
fi

target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$target/mutants" || exit 1
target=$(cd "$target" && pwd)/mutants
# A fixed place: the build cache depends on it.
tree=$target/tree
log=$target/log
binary=$target/mutant/kontiki
# A seed takes a tenth of a second of a core. Whoever needs this long runs in a circle.
patience_s=$((seeds / 2 + 120))

rm -rf "$tree"
mkdir -p "$tree" || exit 1
cp -R Cargo.toml Cargo.lock src tests "$tree"/ || exit 1

build() {
    (cd "$tree" && CARGO_TARGET_DIR=$target cargo build --quiet --profile "$1" --bin kontiki) >"$log.build" 2>&1
}

build_tests() {
    (cd "$tree" && CARGO_TARGET_DIR=$target cargo test --quiet --test integration --no-run) >"$log.build" 2>&1
}

# Runs seeds until one fails: sets `caught` (by what), `after` (seeds) and `took` (seconds of a core, which
# other work on the machine does not lengthen). `stuck` when the seconds allowed are used up: nothing was
# caught then, whatever runs in a circle.
simulate() {
    local budget=$1 limit=$2 status found first
    local TIMEFORMAT=%U
    # shellcheck disable=SC2016
    local run='ulimit -t "$1" && exec "$2" sim --seeds "$3" --jobs 1 --stop >"$4" 2>"$4.err"'
    took=$({ time bash -c "$run" run "$limit" "$binary" "$budget" "$log"; } 2>&1)
    status=$?
    took=${took##*$'\n'}
    took=${took%.*}
    caught=
    stuck=no
    after=$budget
    if [ $status -eq 0 ]; then return; fi
    found=$(sed -n 's/^seed \([0-9]*\): FAILED \(.*\)/\1 \2/p' "$log" | head -n 1)
    if [ -n "$found" ]; then
        after=$((${found%% *} + 1))
        caught=${found#* }
        case $caught in
            assertion | 'core invariant')
                # Its message, without the numbers.
                first=$(head -n 1 "$log" | sed 's/^assertion .* failed: //; s/: .*//')
                caught="$caught: ${first:0:60}"
                ;;
        esac
    elif [ $status -gt 128 ] && [ ! -s "$log.err" ]; then
        stuck=yes
        after='?'
    else
        caught="assertion: $(tail -n 1 "$log.err")"
        after='?'
    fi
}

# Whether all of a patch is in the code around threads and sockets.
is_of_threads() { ! grep '^+++ ' "$1" | grep -qv '^+++ b/src/server/'; }

# Records real processes and replays that: sets what `simulate` sets.
replay() {
    local status run
    local TIMEFORMAT=%U
    # shellcheck disable=SC2016
    run='cd "$1" && CARGO_TARGET_DIR=$2 cargo test --quiet --test integration -- recording:: >"$3" 2>&1'
    took=$({ time bash -c "$run" run "$tree" "$target" "$log"; } 2>&1)
    status=$?
    took=${took##*$'\n'}
    took=${took%.*}
    caught=
    stuck=no
    after=-
    if [ $status -ne 0 ]; then
        caught=$(sed -n 's/^[0-9]* files: FAILED //p' "$log" | head -n 1)
        caught=${caught:-the test of recordings}
    fi
}

row() {
    if [ $markdown = yes ]; then
        printf '| %s | %s | %s | %s | %s |\n' "$1" "$2" "$3" "$4" "$5"
    else
        printf '%-34s %-52s %8s %6s\n' "$1" "$3" "$4" "$5"
    fi
}

row mutant bug 'caught by' seeds s
if [ $markdown = yes ]; then echo '|---|---|---|---|---|'; fi

survived=0
if [ $mode = run ]; then
    for patch in "${chosen[@]}"; do
        label=$(label_of "$patch")
        apply "$tree" "$root/$patch" || fail "$patch does not apply any more"
        if is_of_threads "$patch"; then
            build_tests || { cat "$log.build" >&2; fail "$patch does not build"; }
            replay
        else
            if ! build mutant; then
                cat "$log.build" >&2
                fail "$patch does not build"
            fi
            simulate "$seeds" $patience_s
        fi
        if [ $stuck = yes ]; then
            survived=$((survived + 1))
            caught='NO END'
        elif [ -z "$caught" ]; then
            survived=$((survived + 1))
            caught='SURVIVED'
        fi
        row "$label" "$(head -n 1 "$patch")" "$caught" "$after" "$took"
        apply "$tree" -R "$root/$patch" || fail "$patch cannot be taken back"
    done
fi

failed=no
if [ $mode = clean ] || [ ${#names[@]} -eq 0 ]; then
    # A hundred times the seeds are worth an optimised build.
    binary=$target/release/kontiki
    if ! build release; then
        cat "$log.build" >&2
        fail "the unchanged copy does not build"
    fi
    simulate $((100 * seeds)) $((100 * patience_s))
    if [ $stuck = yes ]; then caught='no end'; fi
    if [ -n "$caught" ]; then failed=yes; fi
    row '(unchanged)' 'none planted' "${caught:-nothing, as it must be}" "$after" "$took"
fi

if [ $survived -gt 0 ]; then fail "$survived of ${#chosen[@]} mutants survived $seeds seeds"; fi
if [ $failed = yes ]; then fail "the unchanged copy failed: $caught"; fi
exit 0
