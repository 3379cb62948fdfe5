# Sourced by demo.sh and test.sh: `need_packages NAME ...` makes sure of what these Debian packages
# bring. Tools may come from anywhere, libraries are looked up as packages.

# brought NAME: is it there already?
brought() {
  case $1 in
    g++) command -v c++ ;;
    clang) command -v clang++ ;;
    cmake | python3) command -v "$1" ;;
    ninja-build) command -v ninja ;;
    python3-venv) python3 -c 'import ensurepip, venv' ;;
    *) [ "$(dpkg-query -W -f='${db:Status-Status}' "$1")" = installed ] ;;
  esac >/dev/null 2>&1
}

need_packages() {
  missing=
  for package in "$@"; do
    brought "$package" || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0

  if ! command -v apt-get >/dev/null 2>&1; then
    echo "omnisparse: this machine has no apt-get, so nothing is installed here. Please install what it"
    echo "omnisparse: lacks of these Debian packages, under the names they have here:$missing"
    # Libraries may be there under other names; without a tool there is no going on.
    for package in $missing; do
      case $package in
        g++ | cmake | ninja-build | python3 | python3-venv) return 1 ;;
      esac
    done
    return 0
  fi >&2

  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    if ! command -v sudo >/dev/null 2>&1; then
      echo "omnisparse: neither root nor sudo, so please have these packages installed:$missing" >&2
      return 1
    fi
  fi
  echo "omnisparse: installing$missing" >&2
  # Word by word, and patiently: a fresh machine may be busy with its own updates.
  apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600"
  $apt update >&2 || echo "omnisparse: apt-get update had problems; trying with the lists there are" >&2
  if ! $apt install -y --no-install-recommends $missing >&2; then
    echo "omnisparse: apt-get could not install these packages:$missing" >&2
    return 1
  fi
}
