#!/usr/bin/env bash
# Measures a machine with a GPU, in some ten minutes: benchmarks/gpu.sh DIRECTORY
#
# The learner alone, with all that it is compared in; then Pong by either type to
# compute in, with actors on all cores but two. Run it where `python` has this project
# and its extra `gpu`. The first steps on a new card are compiled for 1.6 minutes.
set -euo pipefail

if [[ $# != 1 ]]; then
  echo "usage: $0 DIRECTORY" >&2
  exit 2
fi
mkdir -p "$1"
directory=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
nvidia-smi --query-gpu=name,driver_version --format=csv | tee "$directory/gpu.csv"
python -m benchmarks.learner --device gpu --minutes 4 \
  --json "$directory/learner.json" | tee "$directory/learner.md"
cores=$(nproc)
for dtype in float32 float16; do
  python -m launch.train --game pong --seed 0 --num_gpus 1 --compute_dtype $dtype \
    --num_actors $((cores > 2 ? cores - 2 : 1)) --envs_per_actor 4 --evaluation_interval 0 \
    --target_return 18 --max_timesteps 2000000 --plain \
    --run_dir "$directory/pong_$dtype"
done
python -m launch.plot "$directory"/pong_* --out "$directory/pong.png"
