"""Stands in for the training command: returns follow from the learning rate.

It notes that it was called in the file PRETEND_LOG, and stops early, as if it had
been told to, once there is a file PRETEND_STOP.
"""

import os
import pathlib
import sys
import time

from launch import settings as settings_lib


def main():
  command, settings = settings_lib.parse_train(sys.argv[3:])  # After -m module.
  run_dir = pathlib.Path(settings.run.run_dir)
  with open(os.environ['PRETEND_LOG'], 'a') as f:
    f.write(f'{run_dir.parent.name}/{run_dir.name} {command.resume}\n')
  if settings.run.seed == 13:
    return 1
  (run_dir / 'checkpoints').mkdir(parents=True, exist_ok=True)
  settings_lib.save(settings)
  rate = settings.agent.learning_rate
  with open(run_dir / 'progress.csv', 'a') as f:
    if not command.resume:
      f.write('timesteps,walltime_seconds,learner_steps,episodes,'
              'episode_return_mean_100\n')
    for i in range(5 if command.resume else 0, 11):
      f.write(f'{i * 100},{i},{i},{10 * i},{100 * rate * i + settings.run.seed}\n')
      f.flush()
      if i == 4:
        (run_dir / 'checkpoints' / 'ckpt-1.index').touch()
        if os.path.exists(os.environ['PRETEND_STOP']):
          os.remove(os.environ['PRETEND_STOP'])
          return 0
      if rate < 0.01:
        time.sleep(0.5)  # Slow enough to be pruned.
  time.sleep(0.3)  # Long enough to be seen.
  return 0


if __name__ == '__main__':
  sys.exit(main())
