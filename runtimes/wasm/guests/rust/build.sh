#!/bin/sh
# Builds count.wasm again, byte for byte: needs Rust 1.63 with its target wasm32-unknown-unknown, lld 14 (Debian 12:
# rustc libstd-rust-dev-wasm32 lld), and cargo for `../wasi-http/wrap`, which makes a component of the module.
# GUEST_RUSTC names another compiler; a newer one makes other bytes.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${GUEST_RUSTC:-rustc}" --edition 2021 --target wasm32-unknown-unknown --crate-type cdylib -C opt-level=s -C lto -C panic=abort \
  -C strip=symbols -C linker=wasm-ld -C link-arg=-zstack-size=16384 -o "$work/count.core.wasm" count.rs
cargo run -q --manifest-path ../wasi-http/wrap/Cargo.toml -- ../wasi-http/world.wit hello "$work/count.core.wasm" count.wasm
wc -c count.wasm
