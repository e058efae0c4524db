#!/usr/bin/env bash
# Hostile bytes at everything that reads bytes of others, for as long as you like: seeded mutations of valid inputs
# and of what was kept before, in process (src/sim/hostile). What ends as nothing did before is kept under
# tests/corpus and joins every later run, cargo test included; commit it.
#
#   scripts/fuzz.sh [INPUTS [SEED]]     a million inputs of each dialect unless told, a seed from the clock
#
# Ends with 1 at the first input that does what none may, and prints it with its seed and number.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

inputs=${1:-1000000}
seed=${2:-$(date +%s)}
case "$inputs$seed" in
    *[!0-9]*) printf 'usage: scripts/fuzz.sh [INPUTS [SEED]], both whole numbers\n' >&2; exit 2 ;;
esac
printf 'fuzz: %s inputs of each dialect, seed %s\n' "$inputs" "$seed"
# A few at a time: each takes one core.
HOSTILE_INPUTS=$inputs HOSTILE_SEED=$seed HOSTILE_KEEP=1 \
    cargo test --lib -- sim::hostile --nocapture --test-threads "$(nproc 2>/dev/null || echo 2)"
