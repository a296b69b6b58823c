#!/bin/sh
# Builds files.wasm again: needs clang with the wasm32-wasi target and its libc
# (Debian: clang lld wasi-libc libclang-rt-14-dev-wasm32).
set -eu
cd "$(dirname "$0")"
clang --target=wasm32-wasi -Os -Wall -Wextra -Werror -Wl,--strip-all -o files.wasm files.c
wc -c files.wasm
