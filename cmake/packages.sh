# Sourced by demo.sh and test.sh: `need_packages NAME ...` installs the Debian packages that are missing.
need_packages() {
  if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    echo "omnisparse: this is no Debian or Ubuntu machine, so packages are not installed here." >&2
    echo "omnisparse: needed, by their Debian names: $*" >&2
    return 0
  fi
  missing=
  for package in "$@"; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) in
      *'ok installed'*) ;;
      *) missing="$missing $package" ;;
    esac
  done
  [ -n "$missing" ] || return 0
  echo "omnisparse: installing$missing"
  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
      echo "omnisparse: neither root nor sudo: ask for these packages:$missing" >&2
      return 1
    fi
    as_root=sudo
  fi
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
}
