#!/usr/bin/env bash
# Everything that must pass before a change is done. Stops at the first step that fails and names it.
#
#   scripts/check.sh [--no-test]      --no-test leaves `cargo test` out, for a caller that has just run it
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

with_tests=yes
case "$*" in
    '') ;;
    --no-test) with_tests=no ;;
    *) echo "scripts/check.sh: unknown words '$*'; usage: scripts/check.sh [--no-test]" >&2; exit 2 ;;
esac

step() {
    local name=$1
    shift
    printf '== %s: %s\n' "$name" "$*"
    "$@" || { printf 'scripts/check.sh: %s FAILED\n' "$name" >&2; exit 1; }
}

step format cargo fmt --check
step format cargo fmt --check --manifest-path scripts/sieve/Cargo.toml
step clippy cargo clippy --quiet --all-targets -- -D warnings
if [ "$with_tests" = yes ]; then step test cargo test --quiet; fi
step doc env RUSTDOCFLAGS=-Dwarnings cargo doc --quiet --no-deps
if command -v shellcheck >/dev/null 2>&1; then
    step shellcheck shellcheck scripts/*.sh .ci/run
else
    echo "== shellcheck: not installed, left out"
fi
step mutants scripts/mutants.sh --check
echo "all checks passed"
