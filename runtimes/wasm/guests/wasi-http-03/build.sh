#!/bin/sh
# Builds probe.wasm again, byte for byte: needs clang 14 and lld with the wasm32 target (Debian: clang lld), and cargo
# for `../wasi-http/wrap`, which makes components of modules.
set -eu
cd "$(dirname "$0")"
core=$(mktemp)
trap 'rm -f "$core"' EXIT
clang --target=wasm32 -std=c11 -Os -nostdlib -fno-builtin -Wall -Wextra -Werror \
  -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=16384 -o "$core" probe.c
cargo run -q --manifest-path ../wasi-http/wrap/Cargo.toml -- world.wit probe "$core" probe.wasm
wc -c probe.wasm
