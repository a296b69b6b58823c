#!/bin/sh
# Builds hello.wasm and probe.wasm again, byte for byte: needs clang 14 and lld with the wasm32 target
# (Debian: clang lld), and cargo for `wrap`, which makes components of the modules.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for guest in hello probe; do
  clang --target=wasm32 -std=c11 -Os -nostdlib -fno-builtin -Wall -Wextra -Werror -Wno-unused-function -Wno-infinite-recursion \
    -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=16384 -o "$work/$guest.core.wasm" "$guest.c"
  cargo run -q --manifest-path wrap/Cargo.toml -- world.wit "$guest" "$work/$guest.core.wasm" "$guest.wasm"
  wc -c "$guest.wasm"
done
