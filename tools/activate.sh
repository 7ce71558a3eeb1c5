# shellcheck shell=bash
# Sourced by whatever runs the project's Python: the active environment when it serves, else the one of install.sh.

# OpenMP's threads spin while they wait for each other. When anything else wants the cores (another training, a data
# loader), a spinning thread keeps the one that it waits for from running: training then takes twenty times as long.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

# Text is UTF-8 whatever the locale is: Lhotse opens manifests in the locale's encoding, by which every letter beyond ASCII of a
# transcript would be read as others, without an error.
export PYTHONUTF8=1

# The cores that this process may use. OMP_NUM_THREADS, which nproc would go by, is of the threads of one process.
usable_cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1; }

# activate_environment [--k2] [--tests] [--python PATH]: sets PYTHON and puts its folder first on PATH.
activate_environment() {
  local tools k2='' tests='' chosen='' candidate
  tools=$(CDPATH='' cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  while (($#)); do
    case $1 in
      --k2) k2=--k2; shift ;;
      --tests) tests=--tests; shift ;;
      --python) chosen=$2; shift 2 ;;
    esac
  done

  PYTHON=
  for candidate in "${chosen:-python3}" "${chosen:-python}"; do
    if "$candidate" "$tools/check_env.py" $k2 $tests --quiet >/dev/null 2>&1 </dev/null; then
      PYTHON=$("$candidate" -c 'import sys; print(sys.executable)')
      break
    fi
  done
  if [[ ! $PYTHON ]]; then
    "$tools/install.sh" $k2 ${chosen:+--python "$chosen"} || return
    PYTHON=$tools/venv${k2:+-k2}/bin/python
    if ! "$PYTHON" "$tools/check_env.py" $k2 $tests --quiet </dev/null; then
      printf 'error: %s does not serve either (see above): rm -r %q, and this command makes it anew\n' \
        "$PYTHON" "${PYTHON%/bin/python}" >&2
      return 1
    fi
  fi
  export PATH="${PYTHON%/*}:$PATH"
}
