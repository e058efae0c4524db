#!/usr/bin/env bash
# Draws small changes of the code and sees which of them tests and seeds notice: see docs/simulation.md.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
target=${CARGO_TARGET_DIR:-$PWD/target}

tool() {
    CARGO_TARGET_DIR=$target/sieve/tool cargo "$@" --quiet --release --locked --manifest-path scripts/sieve/Cargo.toml || {
        echo "scripts/sieve.sh: the sieve itself fails: cargo $1" >&2
        exit 1
    }
}

if [ "${1:-}" = --self-test ]; then
    tool test
    exit 0
fi
tool build
CARGO_TARGET_DIR=$target exec "$target/sieve/tool/release/sieve" "$@"
