#!/bin/bash
# Puts together what build.py took apart, and runs the plan: bash start.sh SECONDS WORKERS RESULTS [prepare|run]
# Run in the folder that holds all of it. With `prepare` it stops before the workers.
set -u
seconds=${1:-480} workers=${2:-8} results=${3:-results.jsonl} what=${4:-all}
here=$(pwd)
export PYTHONPATH=$here/site:$here/code:$here/code/src CC_TUNING_DATA=$here/data CC_TUNING_CACHE=$here/cache
export CC_TUNING_TEXT=$here/text
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
PYTHON=${PYTHON:-python3}
if [ "$what" != run ] && [ ! -f ready ]; then
  mkdir -p site code data cache
  for first in *.piece000; do  # files that were too large for one folder
    [ -f "$first" ] && cat "${first%000}"* > "${first%.piece000}" && rm "${first%000}"*
  done
  if ls ./*.whl >/dev/null 2>&1; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target site ./*.whl || exit 1
  fi
  tar -xzf code.tar.gz -C code && tar -xf rows.tar -C data && tar -xzf text.tar.gz || exit 1
  # The package is not installed, but asks for its own version.
  mkdir -p site/cc_tuning-0.1.0.dist-info
  printf 'Metadata-Version: 2.1\nName: cc-tuning\nVersion: 0.1.0\n' > site/cc_tuning-0.1.0.dist-info/METADATA
  "$PYTHON" -m experiments.real.gpu.carry unpack . checkpoints || exit 1
  touch ready
  echo "prepared in $SECONDS s"
fi
if [ "$what" != prepare ]; then
  shopt -s nullglob
  known=(known.jsonl*)
  "$PYTHON" -m experiments.real.gpu.workers plan.jsonl "$results" --workers "$workers" --seconds "$seconds" \
    --checkpoints checkpoints ${known:+--known "${known[@]}"}
fi
