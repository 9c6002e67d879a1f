"""What acting costs, against a Nature-CNN trunk: `python -m benchmarks.policy_cost`.

Counts the multiply-adds of the actor's graph for one observation and times
the policy on one core, at batches of 1 and 32, with this agent's small latent
and with the convolutions and dense layer of the Nature DQN, at both frame
sizes. Times are medians over rounds in which the networks take turns.
"""

import functools
import time
from typing import Callable

from acme import specs
import numpy as np
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import ImpalaPPOBuilder
from benchmarks import common
from benchmarks import parts
from benchmarks import sweep
from launch import settings as settings_lib
from programs.runtime import processes

BATCH_SIZES = (1, 32)
FRAME_SIZES = (42, 84)
VARIANTS = {'latent': 'full', 'nature': 'nature_cnn'}  # Of `benchmarks.sweep`.


def multiply_adds(network: Callable[[tf.Tensor], object],
                  observation_spec: specs.Array) -> int:
  """Counts multiplications by a weight, for one observation."""
  graph = tf.function(network).get_concrete_function(tf.TensorSpec(
      [1, *observation_spec.shape], observation_spec.dtype)).graph
  total = 0
  for op in graph.get_operations():
    if op.type == 'Conv2D':
      # Each output pixel takes the whole kernel once.
      _, height, width, _ = op.outputs[0].shape
      total += height * width * op.inputs[1].shape.num_elements()
    elif op.type == 'MatMul':
      total += op.inputs[1].shape.num_elements()
  return total


def make_policy(game: str, frame_size: int,
                variant: str) -> tuple[acting.Policy, int, np.ndarray]:
  """Returns a policy, its multiply-adds, and real observations [32, ...]."""
  settings = settings_lib.from_train_flags([
      '--game', game, '--frame_size', str(frame_size), *sweep.VARIANTS[variant],
      '--envs_per_actor', str(max(BATCH_SIZES))])
  ((_, timestep, _),), environment_spec = parts.record(settings, 0)
  builder = ImpalaPPOBuilder(settings.agent)
  networks = builder.make_networks(environment_spec)
  return (builder.make_policy(networks, environment_spec),
          multiply_adds(networks.actor_critic, environment_spec.observations),
          np.ascontiguousarray(timestep.observation))


def time_calls(call: Callable[[], object], seconds: float) -> float:
  """Returns the mean milliseconds of a call over some seconds."""
  start, calls = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    call()
    calls += 1
  return 1e3 * (time.perf_counter() - start) / calls


def main() -> None:
  parser = common.Parser('policy_cost', __doc__)
  parser.add_argument('--game', default='pong')
  parser.add_argument('--rounds', type=common.positive(int), default=9)
  parser.add_argument('--seconds', type=common.positive(float), default=0.5,
                      help='of each measurement')
  flags = parser.parse_args()
  processes.use_one_core(niceness=0)

  common.print_header(['frames', 'trunk', 'multiply-adds',
                       *(f'batch {size}, ms' for size in BATCH_SIZES)])
  for frame_size in FRAME_SIZES:
    made = {name: make_policy(flags.game, frame_size, variant)
            for name, variant in VARIANTS.items()}
    times: dict[tuple[str, int], list] = {}
    for round_ in range(flags.rounds + 1):
      for name, (policy, _, observations) in made.items():
        for size in BATCH_SIZES:
          batch, seed = observations[:size], np.array([0, round_], np.int64)
          elapsed = time_calls(functools.partial(policy, batch, seed),
                               flags.seconds if round_ else 0.1)
          if round_:  # The first one traces.
            times.setdefault((name, size), []).append(elapsed)
    frames = f'{frame_size}x{frame_size}'
    for name, (_, count, _) in made.items():
      common.print_row([frames, name, f'{count:,}', *(
          f'{np.median(times[name, size]):.3f}' for size in BATCH_SIZES)])
    ratios = [made['latent'][1] / made['nature'][1]] + [
        np.median(np.divide(times['latent', size], times['nature', size]))
        for size in BATCH_SIZES]
    common.print_row([frames, 'latent / nature',
                      *(f'{ratio:.2f}' for ratio in ratios)])


if __name__ == '__main__':
  common.run(main)
