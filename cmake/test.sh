#!/bin/sh
# Installs what is missing, then builds and runs all tests: optimised, then under the sanitizers.
#   sh cmake/test.sh            everything
#   OMNISPARSE_QUICK=1 sh ...   without the sanitizers
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/cmake/packages.sh"
need_packages g++ clang cmake ninja-build libeigen3-dev doctest-dev libcli11-dev nlohmann-json3-dev \
  libomp-dev python3
cd "$here"
jobs=${OMNISPARSE_JOBS:-$(nproc 2>/dev/null || echo 2)}
passed=0 failed=0 skipped=0

# job PRESET [CMAKE OPTION ...]: configures, builds, tests, and adds up the counts.
job() {
  preset=$1
  shift
  echo "== $preset"
  cmake --preset "$preset" "$@" >"build/$preset.log" 2>&1 || { cat "build/$preset.log"; exit 1; }
  cmake --build "build/$preset" -j "$jobs" >>"build/$preset.log" 2>&1 || { tail -60 "build/$preset.log"; exit 1; }
  ctest --test-dir "build/$preset" -j "$jobs" --output-on-failure >"build/$preset.ctest" 2>&1 || true
  cat "build/$preset.ctest"
  lines=$(grep -E '^ *[0-9]+/[0-9]+ Test ' "build/$preset.ctest" || true)
  count() { printf '%s\n' "$lines" | grep -cE "$1" || true; }
  passed=$((passed + $(count ' Passed ')))
  skipped=$((skipped + $(count '\*\*\*Skipped')))
  failed=$((failed + $(count '\*\*\*(Failed|Exception|Timeout|Not Run)')))
  [ -n "$lines" ] || failed=$((failed + 1))
}

mkdir -p build
job test
if [ "${OMNISPARSE_QUICK:-0}" = 0 ]; then
  job asan
  # clang's own OpenMP runtime tells the thread sanitizer about its barriers; GNU's does not.
  job tsan -DCMAKE_CXX_COMPILER=clang++
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
