"""The rooms of the house, read from the source: who may import whom, and what nobody may do.

Most of these tests parse the files and import nothing, so an import inside a function counts too.
The readers themselves are tested first, on lines that break each rule.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import jaxinit
import jaxinit.initializers

PACKAGE = Path(jaxinit.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room imports rooms to its left, never to its right.
STREET = (
    "_types",
    "_json",
    "_arguments",
    "_naming",
    "_table",
    "jaxpr",
    "activations",
    "initializers",
    "engine",
    "planning",
    "reading",
    "signal",
    "advice",
    "pictures",
    "report",
    "cli",
)
# These stand beside `planning` and look left as it does. Only the last two look at them, and rooms
# that judge a model measure it with `checks`.
BESIDE_PLANNING = ("checks", "flax")
LAST = ("report", "cli")
JUDGES = ("advice", "signal")
# A method that draws its object: imported when it is called, so that no room waits for another.
LATE = {("reading/_records.py", "pictures")}
# Files of the package itself that belong to a room.
PART_OF = {"__main__": "cli"}
# "" is the face, jaxinit/__init__.py.
FACE = ""

MAX_LINES_OF_A_FUNCTION = 60
MAX_FILES_OF_A_FOLDER = 12

FLAX_FILES = ("flax/", "report/gpt2.py")
# Inside functions alone: see `test_import_brings_no_optional_package`.
MATPLOTLIB_FILES = ("pictures/_picture.py",)


def inside(path: Path) -> str:
    """Path of a file within the package, with forward slashes."""
    return path.relative_to(PACKAGE).as_posix()


def room_named(first: str) -> str:
    return PART_OF.get(first, first)


def room_of(path: Path) -> str:
    """Room that a file of the package lies in."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return FACE if first == "__init__" else room_named(first)


def room_of_import(name: str) -> str | None:
    """Room that an imported dotted name lies in, None when it is not ours."""
    top, _, rest = name.partition(".")
    if top != "jaxinit":
        return None
    first = rest.partition(".")[0]
    is_module = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
    return room_named(first) if first and is_module else FACE


def allowed_rooms(room: str) -> set[str]:
    """Rooms that `room` may import, itself included."""
    if room == FACE:
        return {FACE, *STREET, *BESIDE_PLANNING} - {"flax", *LAST}
    if room in BESIDE_PLANNING:
        return {room, *STREET[: STREET.index("planning") + 1]}
    allowed = set(STREET[: STREET.index(room) + 1])
    if room in JUDGES:
        allowed.add("checks")
    return allowed | {FACE, *BESIDE_PLANNING} if room in LAST else allowed


@functools.cache
def walk(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Every node of a tree; several tests look at each."""
    return tuple(ast.walk(tree))


def imports_in(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in `tree`, relative names resolved.

    `from a.b import c` yields `a.b.c`: whether `c` is a module or a name inside one does not
    matter to rules about prefixes.
    """
    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def lines_run_late(tree: ast.AST) -> set[int]:
    """Lines that run when an attribute of the module is first asked for, or for type checkers."""
    late = [
        node
        for node in walk(tree)
        if (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")
        or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
    ]
    return {line for node in late for line in range(node.lineno, (node.end_lineno or 0) + 1)}


def settings_written_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of everything that writes `jax.config` or the environment of the process."""
    changing_calls = {
        "config": {"update"},
        "environ": {"setdefault", "update", "pop", "popitem", "clear"},
        "os": {"putenv", "unsetenv"},
    }
    for node in walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value).rpartition(".")[2]
            if node.func.attr in changing_calls.get(owner, ()):
                yield node.lineno, ast.unparse(node.func)
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            owner = ast.unparse(node.value)
            if owner in ("jax.config", "os.environ", "environ"):
                yield node.lineno, ast.unparse(node)


@functools.cache
def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def imports_of(path: Path) -> list[tuple[str, str]]:
    """Place and dotted name of every import in a file of the package."""
    package = ".".join(["jaxinit", *path.relative_to(PACKAGE).parent.parts])
    return [(f"jaxinit/{inside(path)}:{n}", name) for n, name in imports_in(parse(path), package)]


@functools.cache
def declared() -> dict:
    """The table of the project in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def each_module(test):
    """Runs a test once per file of the package."""
    return pytest.mark.parametrize("path", MODULES, ids=inside)(test)


# The readers.


def test_the_reader_sees_every_way_to_import():
    source = """
import jax._src.core as core
from jax import _src
from ..planning import paths
from . import laws
from .fans import Fans
def late():
    from jaxinit.cli import main
"""
    assert [name for _, name in sorted(imports_in(ast.parse(source), "jaxinit.initializers"))] == [
        "jax._src.core",
        "jax._src",
        "jaxinit.planning.paths",
        "jaxinit.initializers.laws",
        "jaxinit.initializers.fans.Fans",
        "jaxinit.cli.main",
    ]


def test_the_reader_sees_every_way_to_change_a_setting():
    changes = [
        "jax.config.update('jax_enable_x64', True)",
        "config.update('jax_enable_x64', True)",
        "jax.config.jax_enable_x64 = True",
        "os.environ['XLA_FLAGS'] = ''",
        "os.environ.setdefault('XLA_FLAGS', '')",
        "del os.environ['XLA_FLAGS']",
        "os.putenv('XLA_FLAGS', '')",
    ]
    harmless = [
        "jax.config.jax_enable_x64",
        "os.environ.get('XLA_FLAGS')",
        "os.environ['XLA_FLAGS']",
        "table.update({})",
        "config['gain'] = 2",
    ]
    for line in changes:
        assert list(settings_written_in(ast.parse(line))), line
    for line in harmless:
        assert not list(settings_written_in(ast.parse(line))), line


def test_the_reader_sees_which_imports_run_late():
    source = """
import early
if TYPE_CHECKING:
    from jaxinit import flax
def __getattr__(name):
    import jaxinit.flax
def other():
    import jaxinit.flax
"""
    tree = ast.parse(source)
    late = lines_run_late(tree)
    assert [line for line, _ in imports_in(tree, "jaxinit") if line not in late] == [2, 8]


def test_a_room_sees_left_and_not_right():
    assert "engine" in allowed_rooms("planning")
    assert "planning" not in allowed_rooms("engine")
    assert "checks" not in allowed_rooms("flax")
    assert {"checks", "flax", FACE} <= allowed_rooms("report")
    assert "cli" not in allowed_rooms("report")
    assert room_of_import("jaxinit.planning.paths.key") == "planning"
    assert room_of_import("jaxinit.plan") == FACE
    assert room_of_import("jax.numpy") is None


# The source.


def test_every_room_is_on_the_map():
    unknown = {room_of(path) for path in MODULES} - {FACE, *STREET, *BESIDE_PLANNING}
    assert not unknown, f"give {sorted(unknown)} a place in STREET, BESIDE_PLANNING or PART_OF"


@each_module
def test_a_room_imports_only_leftwards(path):
    allowed = allowed_rooms(room_of(path))
    late = {f"jaxinit/{inside(path)}:{line}" for line in lines_run_late(parse(path))}
    wrong = [
        f"{place} imports {name}"
        for place, name in imports_of(path)
        if (room := room_of_import(name)) not in {None, *allowed}
        and (inside(path), room) not in LATE
        and not (room_of(path) == FACE and room == "flax" and place in late)
    ]
    assert not wrong, f"may import {sorted(allowed)}:\n" + "\n".join(wrong)


@each_module
def test_only_public_jax(path):
    wrong = [
        f"{place} imports {name}"
        for place, name in imports_of(path)
        if name.split(".")[0] == "jaxlib" or (name + ".").startswith("jax._src.")
    ]
    wrong += [
        f"jaxinit/{inside(path)}:{node.lineno} reads {ast.unparse(node)}"
        for node in walk(parse(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("jax._src")
    ]
    assert not wrong, "jax._src and jaxlib move without notice:\n" + "\n".join(wrong)


@each_module
def test_imports_are_declared(path):
    """What a file imports is in the standard library, ours, or named in pyproject.toml."""
    project = declared()
    required = {line.split(">=")[0] for line in project["dependencies"]}
    allowed = {"jaxinit", "__future__", *sys.stdlib_module_names, *required}
    if inside(path).startswith(FLAX_FILES):
        allowed.add("flax")
    if room_of(path) in LAST or inside(path) in MATPLOTLIB_FILES:
        allowed.add("matplotlib")
    wrong = [
        f"{place} imports {name}"
        for place, name in imports_of(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "undeclared, or not for this file:\n" + "\n".join(wrong)


@each_module
def test_a_room_is_entered_by_its_face(path):
    """A module begins with an underscore: it is for its own room, and for tests."""
    wrong = []
    for place, name in imports_of(path):
        top, *rest = name.split(".")
        if top == "jaxinit" and len(rest) > 1 and room_of_import(name) != room_of(path):
            if rest[1].startswith("_") and not rest[1].startswith("__"):
                wrong.append(f"{place} imports {name}")
    assert not wrong, "import from the face of the room:\n" + "\n".join(wrong)


@each_module
def test_a_function_is_read_on_one_page(path):
    """Statements only: docstrings, however long, do not count."""
    long = []
    for node in walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[bool(ast.get_docstring(node)) :]
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > MAX_LINES_OF_A_FUNCTION:
                long.append(f"{node.name}: {lines} lines")
    assert not long, f"{inside(path)}: does it do one thing? {long}"


def test_a_folder_can_be_remembered():
    counts = Counter(path.parent for path in MODULES)
    crowded = {inside(folder): n for folder, n in counts.items() if n > MAX_FILES_OF_A_FOLDER}
    assert not crowded


@each_module
def test_settings_are_left_alone(path):
    wrong = [
        f"jaxinit/{inside(path)}:{line} {text}" for line, text in settings_written_in(parse(path))
    ]
    assert not wrong, "a library has no say in its user's settings:\n" + "\n".join(wrong)


# The imported package.


def run_fresh(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `source` in a Python of its own that imports the same jaxinit as this one."""
    return subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


NOWHERE = {"JAX_PLATFORMS": "no_such_platform"}


@functools.cache
def strict_import() -> subprocess.CompletedProcess[str]:
    """An import where warnings are errors and no device is found; then a line with all modules."""
    source = """
import sys, warnings
warnings.simplefilter("error")
import jaxinit, jaxinit.checks
print("loaded", *sorted({name.split(".")[0] for name in sys.modules}))
"""
    return run_fresh(source, **NOWHERE)


def test_import_brings_no_optional_package():
    result = strict_import()
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert {"jaxinit", "jax"} <= loaded
    assert not loaded & {"flax", "optax", "matplotlib", "orbax", "haiku", "equinox", "torch"}


def test_the_bridge_to_flax_is_imported_when_it_is_asked_for():
    source = """
import sys, jaxinit
assert "flax" in dir(jaxinit) and "flax" not in sys.modules
assert callable(jaxinit.flax.linen_tree) and "flax" in sys.modules
assert jaxinit.flax is sys.modules["jaxinit.flax"]
from jaxinit import flax
assert flax is jaxinit.flax
"""
    result = run_fresh(source)
    assert result.returncode == 0, result.stderr


def test_without_flax_the_bridge_says_what_to_install():
    source = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "flax":
            raise ModuleNotFoundError("No module named 'flax'", name="flax")
sys.meta_path.insert(0, Missing())
import jaxinit
for ask in ("jaxinit.flax", "exec('from jaxinit import flax')"):
    try:
        eval(ask)
    except ImportError as error:
        print(error)
"""
    result = run_fresh(source)
    assert result.returncode == 0, result.stderr
    said = "jaxinit.flax needs Flax, and flax is not installed. "
    assert result.stdout.count(said + "Install it with pip install 'jaxinit[flax]'.") == 2


def test_the_face_has_no_other_late_name():
    with pytest.raises(AttributeError, match=r"module 'jaxinit' has no attribute 'linen'"):
        _ = jaxinit.linen


def test_the_face_shows_nothing_of_typing():
    assert {"Any", "TYPE_CHECKING", "typing"}.isdisjoint(dir(jaxinit))


def test_import_starts_no_backend():
    """On a platform that does not exist, whatever asks for a device fails: the import asks not."""
    assert run_fresh("import jax; jax.devices()", **NOWHERE).returncode != 0
    assert strict_import().returncode == 0, strict_import().stderr


def test_import_warns_of_nothing_and_prints_nothing():
    result = strict_import()
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"loaded .*\n", result.stdout)


def test_version_is_the_one_in_pyproject():
    project = declared()
    assert jaxinit.__version__ == project["version"]


def public_names(module: ModuleType) -> dict[str, object]:
    """What a module of ours offers: its own values and those it re-exports, not its submodules."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and (getattr(value, "__module__", None) or "").startswith("jaxinit")
    }


@pytest.mark.parametrize(
    "name",
    [
        "jaxinit",
        "jaxinit.activations",
        "jaxinit.flax",
        "jaxinit.initializers",
        "jaxinit.checks",
        "jaxinit.reading",
        "jaxinit.signal",
        "jaxinit.advice",
        "jaxinit.pictures",
        "jaxinit.report",
    ],
)
def test_every_public_name_is_documented(name):
    """A dataclass without a docstring gets its signature as one: that does not count."""
    module = importlib.import_module(name)
    assert module.__doc__
    public = public_names(module)
    assert public
    bare = []
    for label, value in public.items():
        kind = value if isinstance(value, type) else type(value)
        text = inspect.getdoc(value) or ""
        if not text or text.startswith(f"{kind.__name__}("):
            bare.append(label)
    assert not bare, f"{name}: no docstring for {bare}"


def test_public_names_are_found():
    assert {"he_normal", "zeros", "Law"} <= set(public_names(jaxinit.initializers))
    assert {"plan", "Plan", "ParamSpec", "key_for_path", "like_kernel", "fingerprint"} <= set(
        public_names(jaxinit)
    )


@each_module
def test_the_page_on_architecture_has_the_first_line_of_every_module(path):
    if path.name in ("__init__.py", "__main__.py") and path.parent == PACKAGE:
        pytest.skip("the package itself, not a part of a room")
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    first = (ast.get_docstring(parse(path)) or "").splitlines()[0]
    line = first if path.name == "__init__.py" else f"- `{path.name}`: {first}"
    assert line in page, f"docs/architecture.md lacks: {line}"


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    known = {path.name for folder in ("jaxinit", "tests") for path in (ROOT / folder).rglob("*.py")}
    named = set(re.findall(r"\b_?[a-z_]+\.py\b", text))
    assert named <= known, f"CONTRIBUTING.md names {sorted(named - known)}"
