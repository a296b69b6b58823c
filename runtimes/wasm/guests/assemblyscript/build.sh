#!/bin/sh
# Builds upper.wasm again: needs node and npm.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --prefix "$work" assemblyscript@0.28.9
"$work/node_modules/.bin/asc" upper.ts --outFile upper.wasm --runtime stub --use abort= -Osize --noAssert
wc -c upper.wasm
