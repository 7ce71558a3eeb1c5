#!/usr/bin/env bash
# Makes the environment of the recipes: a venv under tools/ with the pinned requirements and kdlib (editable).
# Run again, it does nothing when nothing changed, and mends an environment whose installation was cut short.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: tools/install.sh [--k2] [--python PATH]

  --k2           make tools/venv-k2 (Python 3.10, torch 1.13.1 and the real k2) instead of tools/venv
  --python PATH  the Python to make it from; by default a python3 of 3.10 to 3.12 is looked for (with --k2: 3.10)
USAGE
}

fail() { printf 'error: %s\n' "$1" >&2; exit "${2:-1}"; }

root=$(CDPATH='' cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)  # one and the same through whatever links
k2='' chosen=''
while (($#)); do
  case $1 in
    --k2) k2=--k2 ;;
    --python) (($# > 1)) || fail "--python needs the path of a Python" 2; chosen=$2; shift ;;
    --python=*) chosen=${1#*=} ;;
    -h|--help) usage; exit 0 ;;
    *) fail "unknown option $1 (see tools/install.sh --help)" 2 ;;
  esac
  shift
done

# Another kdlib that Python finds first no installation mends, and checks would take what is ready for broken.
IFS=: read -ra folders <<<"${PYTHONPATH-}"
for folder in "${folders[@]}"; do
  if [[ ! $folder || ! -e $folder/kdlib/__init__.py ]]; then continue; fi
  if [[ $folder -ef $root ]]; then break; fi
  fail "PYTHONPATH has $folder, whose kdlib hides this checkout's: unset PYTHONPATH, or leave that folder out"
done

if [[ $k2 ]]; then
  venv=$root/tools/venv-k2 versions="3.10" wanted="Python 3.10"
  requirements=$root/requirements-k2.txt wheel=$root/requirements-k2-wheel.txt
else
  venv=$root/tools/venv versions="3.12 3.11 3.10" wanted="Python 3.10, 3.11 or 3.12"
  requirements=$root/requirements.txt wheel=
fi

# Prints "3.11" for a Python that runs and can make a venv. To be found is not enough: the shim of a version manager
# stands on PATH for every version and fails for those that are not switched on.
python_version() {
  "$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null
}

fits() {
  local version
  version=$(python_version "$1") && [[ " $versions " == *" $version "* ]]
}

find_python() {
  local version candidate
  local pyenv=${PYENV_ROOT:-${HOME:-~}/.pyenv}
  if fits python3; then command -v python3; return; fi
  for version in $versions; do
    for candidate in "python$version" "$pyenv/versions/$version".*/bin/python3; do
      if fits "$candidate"; then command -v "$candidate"; return; fi
    done
  done
  return 1
}

if [[ $chosen ]]; then
  command -v "$chosen" >/dev/null || fail "--python $chosen: there is no such program"
  found=$(python_version "$chosen") ||
    fail "--python $chosen does not run, or lacks the modules venv and ensurepip (Debian: apt install python3-venv)"
  fits "$chosen" || fail "--python $chosen is Python $found; this environment needs $wanted"
fi

# One installation at a time; the lock goes away with the process, however it ends. Opened to be written to, which NFS asks
# for, and nothing is written; where that may not be, it may still be seen that all is ready.
if [[ -w $requirements ]]; then exec 9>>"$requirements"; else exec 9<"$requirements"; fi
if command -v flock >/dev/null; then
  locked=0
  flock --nonblock 9 2>/dev/null || locked=$?
  case $locked in
    0) ;;
    1) echo "another tools/install.sh is at work on ${venv#"$root/"}; waiting for it"; flock 9 ;;
    *) echo "$root is on a file system without locks: start no second tools/install.sh until this one has ended" ;;
  esac
fi

python=$venv/bin/python
stamp=$venv/.installed
fingerprint() {  # what the installation depends on, the place included, since a venv cannot be moved
  echo "$root $(python_version "$python")"
  cat "$requirements" ${wheel:+"$wheel"} "$root/setup.py" "$root/pyproject.toml"
}

have=$(python_version "$python" || true)
if [[ $have && (! $chosen || $have == "$found") && -f $stamp ]] &&
   cmp --silent "$stamp" <(fingerprint) && "$python" "$root/tools/check_env.py" $k2 --no-import --quiet >/dev/null; then
  echo "${venv#"$root/"} is ready (Python $have)"
  exit 0
fi

rm -f "$stamp"
if ! fits "$python" || [[ $chosen && $have != "$found" ]]; then
  if [[ ! $chosen ]]; then
    chosen=$(find_python) || fail "no $wanted with the venv module was found. One of these gets it:
  pyenv install ${versions##* }
  conda create -n py310 python=3.10 (then --python with the path of its bin/python)
  uv python install 3.10 (then --python \"\$(uv python find 3.10)\")
  apt install python3.10 python3.10-venv (Ubuntu: from the deadsnakes archive)
or name one: tools/install.sh ${k2:+$k2 }--python PATH"
  fi
  echo "making ${venv#"$root/"} with $chosen (Python $(python_version "$chosen"))"
  "$chosen" -m venv --clear "$venv" </dev/null
elif ! "$python" -m pip --version >/dev/null 2>&1; then
  "$python" -m ensurepip --upgrade >/dev/null
fi

log=$venv/install.log
install() {
  if ! "$python" -m pip install --disable-pip-version-check --no-input --retries 10 "$@" >>"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    fail "pip failed (the whole of its output: $log); once mended, run tools/install.sh ${k2:+$k2 }again, it goes on"
  fi
}

echo "installing $(basename "$requirements") into ${venv#"$root/"}: about 5 GB, a few minutes; output in ${log#"$root/"}"
: >"$log"
if [[ $k2 ]]; then install "pip<24"; fi  # newer ones refuse the name of k2's wheel
install --requirement "$requirements"
if [[ $wheel ]]; then install --no-deps --force-reinstall --requirement "$wheel"; fi
install --no-deps --editable "$root"
"$python" "$root/tools/check_env.py" $k2 ||
  fail "the environment was installed but does not serve (see above); rm -r $(printf %q "$venv") and run \
tools/install.sh ${k2:+$k2 }again"
fingerprint >"$stamp.part"
mv "$stamp.part" "$stamp"
