"""The figures of a Reverb server's tables, read without changing anything."""

import dataclasses
import math
import socket
import time
from typing import Any, Mapping, Optional, Sequence

import reverb
from rich import box
from rich import console
from rich import table as rich_table
import tensorflow as tf
import tree

_ANSWER_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a server reported about its tables, and when.

  Attributes:
    address: 'host:port'.
    tables: by name.
    seconds: time of the reading, on this machine's monotonic clock.
  """
  address: str
  tables: Mapping[str, reverb.reverb_types.TableInfo]
  seconds: float


def connect(address: str) -> reverb.Client:
  """Returns a client of a server.

  Args:
    address: 'host:port'.

  Raises:
    ValueError: if none is reached; the message is one line.
  """
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
    raise ValueError(f'address must be HOST:PORT, not {address!r}.')
  try:
    # Fails at once, where Reverb would keep trying.
    socket.create_connection((host.strip('[]'), int(port)),
                             _ANSWER_SECONDS).close()
  except OSError as e:
    raise ValueError(f'no server is reached at {address} '
                     f'({(e.strerror or str(e)).lower()}).') from None
  return reverb.Client(address)


def read(client: reverb.Client) -> Reading:
  """Reads a server's tables; raises ValueError if it does not answer."""
  try:
    tables = client.server_info(timeout=_ANSWER_SECONDS)
  except (reverb.errors.ReverbError, RuntimeError) as e:  # Depends on the cause.
    raise ValueError(f'no Reverb server answers at {client.server_address} '
                     f'({" ".join(str(e).split())}).') from None
  return Reading(client.server_address, dict(sorted(tables.items())),
                 time.monotonic())


def figures(before: Reading, after: Reading) -> list[dict[str, Any]]:
  """Returns the figures of each table, ready for JSON.

  Rates, and the shares of time that actors or the learner waited, are for the
  time between two readings of a server.
  """
  return [_figures(after.address, before.tables.get(name, table), table,
                   max(after.seconds - before.seconds, 1e-9))
          for name, table in after.tables.items()]


def _figures(address: str, before: reverb.reverb_types.TableInfo,
             after: reverb.reverb_types.TableInfo,
             seconds: float) -> dict[str, Any]:
  limiter = after.rate_limiter_info
  inserts, samples = (limiter.insert_stats.completed,
                      limiter.sample_stats.completed)
  was = before.rate_limiter_info
  ratio = limiter.samples_per_insert
  difference = inserts * ratio - samples
  size = after.current_size

  def share(what: str) -> float:
    """Returns the share of time that the table waited for something."""
    milliseconds = (getattr(after.table_worker_time, what) -
                    getattr(before.table_worker_time, what))
    return round(min(max(milliseconds / 1000 / seconds, 0.), 1.), 3)

  return {
      'address': address,
      'table': after.name,
      'size': size,
      'max_size': after.max_size,
      'inserts': inserts,
      'inserts_per_second': _rate(inserts, was.insert_stats.completed, seconds),
      'samples': samples,
      'samples_per_second': _rate(samples, was.sample_stats.completed, seconds),
      'samples_per_insert': round(samples / inserts, 4) if inserts else None,
      'rate_limiter': {
          'samples_per_insert': ratio,
          'difference': difference,
          'min_difference': _finite(limiter.min_diff),
          'max_difference': _finite(limiter.max_diff),
          'min_size_to_sample': limiter.min_size_to_sample,
          'takes_inserts': (size < limiter.min_size_to_sample or
                            difference + ratio <= limiter.max_diff),
          'gives_samples': (size >= limiter.min_size_to_sample and
                            difference - 1 >= limiter.min_diff),
      },
      'inserts_held_up': share('waiting_for_sampling_ms'),
      'samples_held_up': share('waiting_for_inserts_ms'),
      'sampler': _selector(after.sampler_options),
      'remover': _selector(after.remover_options),
      'max_times_sampled': after.max_times_sampled,
      'signature': _signature(after.signature),
  }


def _rate(now: int, then: int, seconds: float) -> float:
  # A server that was restarted counts from zero.
  return round(max(now - then, 0) / seconds, 2)


def _finite(bound: float) -> Optional[float]:
  return bound if abs(bound) < 1e300 else None


def _selector(options: Any) -> str:
  kind = options.WhichOneof('distribution')
  if kind == 'prioritized':
    return f'prioritized, exponent {options.prioritized.priority_exponent:g}'
  if kind == 'heap':
    return 'min heap' if options.heap.min_heap else 'max heap'
  return kind or 'unknown'


def _signature(signature: Any) -> Optional[dict[str, dict[str, Any]]]:
  if signature is None:
    return None
  return {'/'.join(map(str, path)) or 'item': {
      'shape': spec.shape.as_list() if spec.shape.rank is not None else None,
      'dtype': spec.dtype.name}
          for path, spec in sorted(
              tree.flatten_with_path(signature), key=lambda leaf: leaf[0])
          if isinstance(spec, tf.TensorSpec)}


def shown(tables: Sequence[Mapping[str, Any]],
          is_watched: bool = False) -> console.Group:
  """Returns the figures of tables as a terminal shows them.

  Args:
    tables: the figures of each table.
    is_watched: whether to leave out what does not change, and show several
      servers with one line per table; by default each server has a block.
  """
  addresses = list(dict.fromkeys(table['address'] for table in tables))
  if is_watched and len(addresses) > 1:
    return console.Group(_lines(tables))
  blocks: list[Any] = []
  for address in addresses:
    blocks.append(_block(
        address, [table for table in tables if table['address'] == address]))
  if not is_watched:
    signatures: dict[str, list[str]] = {}
    for table in tables:
      signatures.setdefault(repr(table['signature']), []).append(table['table'])
    for table in tables:
      names = signatures.pop(repr(table['signature']), None)
      if names is not None:
        blocks.append(_signature_block(sorted(set(names)), table['signature']))
  return console.Group(*blocks)


def _block(address: str,
           tables: Sequence[Mapping[str, Any]]) -> rich_table.Table:
  block = rich_table.Table(title=f'Reverb at {address}', title_justify='left',
                           title_style='bold')
  block.add_column('table')
  for table in tables:
    block.add_column(table['table'], style='cyan')
  for name, cell in _ROWS.items():
    block.add_row(name, *map(cell, tables))
  return block


def _lines(tables: Sequence[Mapping[str, Any]]) -> rich_table.Table:
  block = rich_table.Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
  for title in ('server', 'table'):
    block.add_column(title)
  for title in _COLUMNS:
    block.add_column(title, justify='right', style='cyan')
  for table in tables:
    block.add_row(table['address'], table['table'],
                  *(cell(table) for cell in _COLUMNS.values()))
  return block


def _bounds(table: Mapping[str, Any]) -> str:
  limiter = table['rate_limiter']
  low, high = (math.copysign(math.inf, sign) if bound is None else bound
               for sign, bound in ((-1, limiter['min_difference']),
                                   (1, limiter['max_difference'])))
  return f'{limiter["difference"]:,g}, kept in [{low:,g}, {high:,g}]'


def _open_to(table: Mapping[str, Any]) -> str:
  limiter = table['rate_limiter']
  return (f'{"takes inserts" if limiter["takes_inserts"] else "no inserts"}, '
          f'{"gives samples" if limiter["gives_samples"] else "no samples"}')


def _held_up(share: float) -> str:
  return f'{share:.0%} of the time' if share else 'not at all'


def _times_sampled(table: Mapping[str, Any]) -> str:
  most = table['max_times_sampled']
  return f'at most {most:,} times' if most > 1 else ('once' if most else
                                                     'any number of times')


def _achieved(table: Mapping[str, Any]) -> str:
  ratio = table['samples_per_insert']
  wanted = table['rate_limiter']['samples_per_insert']
  return f'{"none" if ratio is None else f"{ratio:.3g}"}, wanted {wanted:g}'


_ROWS = {
    'items': lambda t: f'{t["size"]:,} of {t["max_size"]:,}',
    'inserted': lambda t: f'{t["inserts"]:,}, {t["inserts_per_second"]:,g}/s',
    'sampled': lambda t: f'{t["samples"]:,}, {t["samples_per_second"]:,g}/s',
    'samples an insert': _achieved,
    'limiter, balance': _bounds,
    'limiter, now': _open_to,
    'actors wait': lambda t: _held_up(t['inserts_held_up']),
    'learner waits': lambda t: _held_up(t['samples_held_up']),
    'sampled by': lambda t: t['sampler'],
    'each item': _times_sampled,
    'removed by': lambda t: t['remover'],
}


_COLUMNS = {
    'items': lambda t: f'{t["size"]:,}',
    'full': lambda t: f'{t["size"] / t["max_size"]:.0%}',
    'inserts\na second': lambda t: f'{t["inserts_per_second"]:,.4g}',
    'samples\na second': lambda t: f'{t["samples_per_second"]:,.4g}',
    'samples\nan\ninsert': lambda t: f'{t["samples_per_insert"] or 0.:.3g}',
    'actors\nwait': lambda t: f'{t["inserts_held_up"]:.0%}',
    'learner\nwaits': lambda t: f'{t["samples_held_up"]:.0%}',
}


def _signature_block(
    names: Sequence[str],
    signature: Optional[Mapping[str, Mapping[str, Any]]]) -> rich_table.Table:
  block = rich_table.Table(title=f'Items of {", ".join(names)}',
                           title_justify='left', title_style='bold')
  for column in ('column', 'shape', 'dtype'):
    block.add_column(column)
  if signature is None:
    block.add_row('without a signature', '', '')
  for name, spec in (signature or {}).items():
    shape = spec['shape']
    # The open axis is that of an actor's environments.
    block.add_row(name, 'any' if shape is None else
                  f'[{", ".join("E" if n is None else str(n) for n in shape)}]',
                  spec['dtype'])
  return block
