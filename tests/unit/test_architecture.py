"""Who imports whom, read from the syntax tree."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ('agents', 'programs', 'launch', 'benchmarks', 'tests')
# What each package may import of ours.
ARROWS = {
    'agents': {'agents'},
    'programs': {'programs', 'agents'},
    'launch': {'launch', 'programs', 'agents'},
}
# Public in spite of their names.
PUBLIC = {'_replace', '_asdict', '_fields', '_exit'}


def modules(package):
  """Returns the paths of a package's modules, from the root."""
  paths = sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob('*.py'))
  assert paths
  return paths


def tree(path):
  return ast.parse((ROOT / path).read_text())


def imports(path):
  """Returns the full names that a module imports, wherever in it."""
  names = set()
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path} has a relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def packages_imported(path):
  return {name.partition('.')[0] for name in imports(path)}


def foreign_private_names(path):
  """Returns what a module uses of others that begins with an underscore.

  That is `x._y` where x is anything but self or cls, and imported names.
  """
  names = {name for name in imports(path)
           if any(part.startswith('_') and not part.startswith('__')
                  for part in name.split('.'))}
  for node in ast.walk(tree(path)):
    if (isinstance(node, ast.Attribute) and node.attr.startswith('_') and
        not node.attr.startswith('__') and node.attr not in PUBLIC and
        not (isinstance(node.value, ast.Name) and
             node.value.id in ('self', 'cls'))):
      names.add(ast.unparse(node))
  return names


@pytest.mark.parametrize('package', ARROWS)
def test_launch_imports_programs_import_agents(package):
  for path in modules(package):
    ours = packages_imported(path) & set(PACKAGES)
    assert ours <= ARROWS[package], path


def test_no_modules_import_each_other_in_a_circle():
  def name(path):
    return '.'.join(path.with_suffix('').parts)

  ours = {name(path): path for package in ARROWS for path in modules(package)}
  graph = {module: imports(path) & set(ours) for module, path in ours.items()}
  assert graph['launch.sweep'] >= {'launch.plans', 'launch.search'}
  list(graphlib.TopologicalSorter(graph).static_order())  # Raises CycleError.


def test_only_the_graph_and_what_starts_it_know_launchpad():
  users = {str(path) for package in ARROWS for path in modules(package)
           if 'launchpad' in packages_imported(path)}
  assert users == {'programs/impala_ppo.py', 'programs/nodes/serving.py',
                   'launch/engines/local.py', 'launch/engines/ray.py'}


def test_only_an_engine_knows_ray():
  users = {str(path) for package in ARROWS for path in modules(package)
           if 'ray' in packages_imported(path)}
  assert users == {'launch/engines/agent.py', 'launch/engines/ray.py',
                   'launch/engines/side_by_side.py'}


def test_the_runtime_knows_neither_nodes_nor_algorithm():
  for path in modules('programs/runtime'):
    ours = {name for name in imports(path)
            if name.startswith(('agents', 'programs'))}
    assert all(name.startswith('programs.runtime') for name in ours), path


def test_benchmarks_use_no_private_names():
  used = {str(path): foreign_private_names(path)
          for path in modules('benchmarks')}
  assert {path: names for path, names in used.items() if names} == {}
