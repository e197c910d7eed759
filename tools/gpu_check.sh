#!/usr/bin/env bash
# Twelve minutes on a machine with a GPU: all that no CPU can prove, step by step, and docs/results/gpu.md from it.
#
#   tools/gpu_check.sh OUT [--cpu] [--only STEP ...]
#
# Every step has its own time-out and leaves OUT/STEP.json and OUT/STEP.log, so that one that fails leaves the others
# standing. What a step needs and is missing is named, and the step is skipped. --cpu rehearses all of it, tiny,
# without a GPU. PYTHON names the interpreter; else it is that of .venv, or python3.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "$python" || command -v python3)
exec "$python" "$here/tools/gpu_check.py" run "$@"
