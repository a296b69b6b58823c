#!/bin/sh
# Makes hello.wasm (1.1 MB, not kept in the tree): needs node and what package.json names (npm install
# --no-package-lock). An argument is another place for the result.
set -eu
to=${1:-}
[ -n "$to" ] || to="$(dirname "$0")/hello.wasm"
case "$to" in /*) ;; *) to="$PWD/$to" ;; esac
cd "$(dirname "$0")"
node node_modules/componentize-qjs/bin/componentize-qjs --wit ../wasi-http-03/world.wit --world hello --js hello.js \
  --opt-size -o "$to"
