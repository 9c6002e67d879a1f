#!/usr/bin/env bash
# Makes the environment of one peer: benchmarks/peers/install.sh PEER DIRECTORY
#
# Needs Python 3.11 for all but Acme, which takes this project's 3.10.
# PyTorch is the CPU build where the index has one.
set -euo pipefail

if [[ $# != 2 ]]; then
  echo "usage: $0 acme_impala|cleanrl_ppo|rllib_appo|sample_factory_appo|sb3_ppo DIRECTORY" >&2
  exit 2
fi
peer=$1
directory=$(realpath -m "$2")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
pip="$directory/bin/python -m pip"

# Puts the ROMs of a newer ale-py where one that has none looks for them.
add_roms() {
  local scratch
  scratch=$(mktemp -d)
  $pip install --quiet --no-deps --target "$scratch" ale-py==0.12.1
  cp "$scratch"/ale_py/roms/*.bin \
    "$("$directory/bin/python" -c 'import ale_py.roms as r; print(r.__path__[0])')"
  rm -r "$scratch"
}

case $peer in
  acme_impala)
    (cd "$root" && python3.10 -m venv "$directory")
    # Its wrappers import the retired gym, its adders jax.
    $pip install --quiet -c "$root/requirements.lock" "$root" \
      gym==0.26.2 jax==0.4.30 jaxlib==0.4.30
    ;;
  cleanrl_ppo)
    python3.11 -m venv "$directory"
    $pip install --quiet torch==2.13.0 'numpy<2' gym==0.23.1 envpool==1.2.5 \
      tensorboard
    # Its own requirements are for an older Python and an older EnvPool.
    $pip install --quiet --no-deps --ignore-requires-python cleanrl==1.2.0
    ;;
  rllib_appo)
    python3.11 -m venv "$directory"
    $pip install --quiet torch==2.13.0 'ray[rllib]==2.48.0' ale-py==0.10.1 \
      opencv-python-headless
    ;;
  sample_factory_appo)
    python3.11 -m venv "$directory"
    $pip install --quiet torch==2.13.0 sample-factory==2.1.1 gymnasium==0.29.1 \
      'shimmy[atari]<2' opencv-python-headless
    add_roms
    ;;
  sb3_ppo)
    python3.11 -m venv "$directory"
    $pip install --quiet torch==2.13.0 stable-baselines3==2.9.2 ale-py==0.12.1 \
      opencv-python-headless
    ;;
  *)
    echo "install: error: unknown peer $peer" >&2
    exit 2
    ;;
esac
