#!/usr/bin/env bash
# Runs the tests, in an environment that is made first where the active one does not serve.
#
#   tools/test.sh [pytest arguments]        all tests but those that need the real k2
#   tools/test.sh --k2 [pytest arguments]   those that need it: comparisons with k2, and a smoke run of
#                                           egs/voice_commands that trains with it; and what depends on the
#                                           version of torch
set -euo pipefail
if [[ ${1-} == -h || ${1-} == --help ]]; then sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit; fi
root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/activate.sh"

if [[ ${1-} == --k2 ]]; then
  shift
  activate_environment --k2 --tests
  selection=(-m "k2 or both")
else
  activate_environment --tests
  selection=()
fi
cd "$root"
# All of them: on all cores, each file in one process, since its tests share what it made, in the order of conftest.py.
if ((!$#)); then set -- --numprocesses "$(usable_cores)" --dist loadfile --no-loadscope-reorder --durations 15; fi
echo "testing with $PYTHON"
exec "$PYTHON" -m pytest "${selection[@]}" "$@"
