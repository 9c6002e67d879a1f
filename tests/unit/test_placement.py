"""Who goes where on a cluster."""

import collections

from hypothesis import given
from hypothesis import strategies as st
import pytest

ray_engine = pytest.importorskip('launch.engines.ray')


@st.composite
def places(draw):
  """Draws the places of each host, and how many of them are for shards."""
  room = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
  hosts = draw(st.permutations(
      [f'host{i}' for i, number in enumerate(room) for _ in range(number)]))
  return hosts, draw(st.integers(1, max(1, len(hosts) // 2)))


@given(places())
def test_every_shard_and_actor_has_a_place_of_its_own(drawn):
  hosts, num_shards = drawn
  shards, actors = ray_engine.assign(
      'host0', hosts, num_shards, len(hosts) - num_shards)
  assert sorted([*shards, *actors]) == list(range(len(hosts)))


@given(places())
def test_shards_are_spread(drawn):
  hosts, num_shards = drawn
  shards, _ = ray_engine.assign('host0', hosts, num_shards, 0)
  room = collections.Counter(hosts)
  held = collections.Counter(hosts[place] for place in shards)
  # No host has two more than another that has room.
  for host in room:
    if held[host] < room[host]:
      assert max(held.values()) <= held[host] + 1


@given(places())
def test_actors_are_near_their_shard_as_far_as_there_is_room(drawn):
  hosts, num_shards = drawn
  num_actors = len(hosts) - num_shards
  shards, actors = ray_engine.assign('host0', hosts, num_shards, num_actors)
  wish = [hosts[shards[actor % num_shards]] for actor in range(num_actors)]
  near = collections.Counter(
      host for host, place in zip(wish, actors) if hosts[place] == host)
  room = collections.Counter(hosts) - collections.Counter(
      hosts[place] for place in shards)
  assert near == collections.Counter(
      {host: min(number, room[host]) for host, number in
       collections.Counter(wish).items() if room[host]})


def test_a_lone_shard_is_at_home():
  hosts = ['host1'] * 8 + ['host0']
  shards, _ = ray_engine.assign('host0', hosts, 1, 8)
  assert hosts[shards[0]] == 'host0'
