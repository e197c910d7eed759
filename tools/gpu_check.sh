#!/usr/bin/env bash
# Test and measure on a GPU what no CPU can show, in twelve minutes, and write docs/results/gpu.md from it.
#
#   tools/gpu_check.sh OUT [--cpu] [--only STEP ...]
#
# Every step has its own time-out and writes OUT/STEP.json and OUT/STEP.log, so a step that fails does not harm the
# others. A step whose packages are missing is skipped, and they are named. --cpu rehearses all steps, tiny, without a
# GPU. PYTHON names the interpreter; the default is that of .venv, or python3.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "$python" || command -v python3)
exec "$python" "$here/tools/gpu_check.py" run "$@"
