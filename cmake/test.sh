#!/bin/sh
# Installs what is missing, then builds and runs all CPU tests, optimised. With --all also by -Ofast,
# under the sanitizers and, where there is nvcc, all that it compiles; the GPU's tests skip themselves
# where there is no GPU.
#   sh cmake/test.sh [--all] [CMAKE OPTION ...]
# OMNISPARSE_JOBS=N builds and tests N at a time. Logs go to build/, each job tells its minutes, and
# the last line counts what ran.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
. cmake/packages.sh
all=0
if [ "${1:-}" = --all ]; then
  all=1
  shift
fi
jobs=${OMNISPARSE_JOBS:-$(nproc 2>/dev/null || echo 2)}

need_packages g++ cmake ninja-build libeigen3-dev doctest-dev libcli11-dev nlohmann-json3-dev python3
if [ "$all" = 1 ]; then
  need_packages clang libomp-dev
  # Clang's sanitizer runtimes are a package of its own, named by its version.
  ! command -v apt-get >/dev/null 2>&1 || need_packages "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev"
fi
mkdir -p build

passed=0 failed=0 skipped=0
minutes=
# Old sanitizer runtimes find no room for their shadow where addresses are very random.
calm=
if setarch "$(uname -m)" -R true 2>/dev/null; then calm="setarch $(uname -m) -R"; fi

# job PRESET [CMAKE OPTION ...]: configures, builds, tests; adds up the counts and notes the minutes.
job() {
  began=$(date +%s)
  work "$@"
  tenths=$((($(date +%s) - began + 3) / 6))
  minutes="$minutes${minutes:+, }$1 $((tenths / 10)).$((tenths % 10))"
}
work() {
  preset=$1
  shift
  log="build/$preset.log"
  echo "== $preset: building (log: $log)"
  if ! { cmake --preset "$preset" "$@" && cmake --build "build/$preset" -j "$jobs"; } >"$log" 2>&1; then
    grep -n -A20 -E 'FAILED|rror[: ]' "$log" | head -80 || true
    tail -20 "$log"
    echo "== $preset: could not be built"
    failed=$((failed + 1))
    return
  fi
  report="$here/build/$preset-tests.xml"
  rm -f "$report"
  $calm ctest --test-dir "build/$preset" -j "$jobs" --output-on-failure --output-junit "$report" || true
  # The first lines of the report: <testsuite name=... tests="12" failures="0" disabled="0" skipped="1"
  count() { sed -n "/<testsuite/,/>/s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" "$report" 2>/dev/null | head -n 1; }
  ran=$(count tests) bad=$(count failures) off=$(count disabled) skip=$(count skipped)
  if [ "${ran:-0}" -eq 0 ]; then
    echo "== $preset: no test ran"
    failed=$((failed + 1))
    return
  fi
  failed=$((failed + bad))
  skipped=$((skipped + off + skip))
  passed=$((passed + ran - bad - off - skip))
}

job test "$@"
if [ "$all" = 1 ]; then
  job fast-math "$@"
  job fast-math-clang "$@"
  export LSAN_OPTIONS="suppressions=$here/cmake/leaks.supp"
  job asan "$@"
  unset LSAN_OPTIONS
  # LLVM's archer tells the thread sanitizer about OpenMP's barriers; without it all is a race.
  archer=
  for file in /usr/lib/llvm-*/lib/libarcher.so /usr/lib/*/libarcher.so; do
    [ ! -e "$file" ] || archer=$file
  done
  if [ -n "$archer" ]; then
    # More threads than cores, so that they meet.
    export OMP_NUM_THREADS=4 OMP_WAIT_POLICY=passive OMP_TOOL_LIBRARIES="$archer" \
      TSAN_OPTIONS=ignore_noninstrumented_modules=1
    job tsan "$@"
  else
    echo "== tsan: skipped, this machine has no libarcher.so (it comes with LLVM's OpenMP)"
    skipped=$((skipped + 1))
  fi
  unset OMP_NUM_THREADS OMP_WAIT_POLICY OMP_TOOL_LIBRARIES TSAN_OPTIONS
  if command -v "${CUDACXX:-nvcc}" >/dev/null 2>&1; then
    need_packages libbenchmark-dev
    job cuda-parts "$@"
  else
    echo "== cuda-parts: skipped, this machine has no nvcc (it comes with the CUDA Toolkit)"
    skipped=$((skipped + 1))
  fi
fi

echo "minutes: $minutes"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
