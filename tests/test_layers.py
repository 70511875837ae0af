"""Import and include rules: modules and sources use only their own part and lower layers."""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "egcnn"

#: From the lowest layer up; entries of one line do not import each other.
FLOORS = (
    ("egcnn", "egcnn._C"),
    ("egcnn.errors", "egcnn.machine", "egcnn.narrow", "egcnn.legacy"),
    ("egcnn.typed", "egcnn.terminal"),
    ("egcnn.settings", "egcnn.files", "egcnn.checks", "egcnn.processes"),
    ("egcnn.ops",),
    ("egcnn.regions",),
    ("egcnn.data",),
    ("egcnn.nn", "egcnn.edges"),
    ("egcnn.losses", "egcnn.metrics", "egcnn.panels", "egcnn.safetensors", "egcnn.windows"),
    ("egcnn.checkpoint", "egcnn.lesions", "egcnn.nnunet", "egcnn.predictions", "egcnn.scores"),
    ("egcnn.inference", "egcnn.export"),
    ("egcnn.evaluation",),
    ("egcnn.training",),
    ("egcnn.comparison",),
    ("egcnn.report",),
    ("egcnn.demo",),
    ("egcnn.cli",),
    ("egcnn.__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = {
    ".".join(["egcnn", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def part(module: str) -> str:
    """The entry of the table that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imports(module: str) -> set[str]:
    """Modules of this package that a module imports, at its top, within functions, or for types."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            # from egcnn import ops
            members = {f"{node.module}.{name.name}" for name in node.names}
            known = {name for name in members if name in MODULES or part(name) in FLOOR}
            found.update(known if node.module == "egcnn" else {node.module or ""})
    return {name for name in found if name.split(".")[0] == "egcnn"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_below(module: str) -> None:
    assert part(module) in FLOOR, f"{module} has no layer; add it to the table"
    floor = FLOOR[part(module)]
    for other in imports(module):
        same_package = part(other) == part(module)
        assert same_package or FLOOR[part(other)] < floor, f"{module} imports {other} from above"


def assert_no_cycle(uses: dict[str, set[str]]) -> None:
    """Fail if keys use each other in a cycle, and name it."""
    waiting = dict(uses)
    while waiting:
        free = [name for name, others in waiting.items() if not others & set(waiting)]
        if not free:
            path = [min(waiting)]
            while path[-1] not in path[:-1]:
                path.append(min(waiting[path[-1]] & set(waiting)))
            raise AssertionError(f"cycle: {' -> '.join(path[path.index(path[-1]) :])}")
        for name in free:
            del waiting[name]


def test_a_package_has_no_cycle() -> None:
    """Modules within a package do not import each other in a cycle."""
    assert_no_cycle(
        {
            module: {name for name in imports(module) if name != part(module) and name in MODULES}
            for module, path in MODULES.items()
            if path.name != "__init__.py"
        }
    )


CSRC = ROOT / "csrc"
SOURCES = sorted(
    path.relative_to(CSRC).as_posix()
    for path in CSRC.rglob("*")
    if path.suffix in {".h", ".cpp", ".cuh", ".cu", ".inc"}
)


def include_rules() -> list[tuple[str, set[str]]]:
    """The rows of CONTRIBUTING's table: a file or folder of csrc, and what it may include."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("| part | includes |\n|---|---|\n")[1].split("\n\n")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines()]
    return [(re.findall("`(.+?)`", row)[0], set(re.findall("`(.+?)`", to))) for row, to in cells]


RULES = include_rules()
#: Headers of the system or of libraries that only some parts may include.
RESERVED = {header for _, allowed in RULES for header in allowed if header.startswith("<")}


def rule(source: str) -> tuple[str, set[str]]:
    """The part that a source belongs to, and what it may include besides that part."""
    for row, allowed in RULES:
        pattern = re.escape(row).replace("NAME", "[^/]+") + ("" if row.endswith("/") else "$")
        if match := re.match(pattern, source):
            return match[0], allowed
    raise AssertionError(f"csrc/{source} has no row in CONTRIBUTING's table of includes")


def includes(source: str) -> set[str]:
    """What a source includes: paths within csrc, and headers in angle brackets with these."""
    text = (CSRC / source).read_text(encoding="utf-8")
    quoted = re.findall(r'^ *# *include *"(.+)"', text, re.M)
    folder = os.path.dirname(source)
    return {os.path.normpath(os.path.join(folder, path)) for path in quoted} | set(
        re.findall(r"^ *# *include *(<.+>)", text, re.M)
    )


@pytest.mark.parametrize("source", [name for name in SOURCES if includes(name)])
def test_includes_follow_the_table(source: str) -> None:
    own, allowed = rule(source)
    for other in includes(source):
        assert not re.match("<(torch|ATen|c10)/", other), f"csrc/{source} includes {other}"
        if other.startswith("<"):
            reserved = any(fnmatch(other, header) for header in RESERVED)
            assert not reserved or any(fnmatch(other, header) for header in allowed), (
                f"CONTRIBUTING's table does not let csrc/{source} include {other}"
            )
        else:
            assert other.startswith((own, *(part for part in allowed if part.endswith("/")))) or (
                other in allowed
            ), f"CONTRIBUTING's table does not let csrc/{source} include {other}"


def test_the_table_of_includes_has_no_dead_entry() -> None:
    """Each row has a source, and each entry an include."""
    used = {
        (rule(name)[0], other) for name in SOURCES if includes(name) for other in includes(name)
    }
    for row, allowed in RULES:
        pattern = re.escape(row).replace("NAME", "[^/]+")
        found = {other for own, other in used if re.fullmatch(pattern, own)}
        assert found, f"no source of {row}"
        for entry in allowed:
            assert any(fnmatch(other, entry + "*" * entry.endswith("/")) for other in found), (
                f"CONTRIBUTING's table lets {row} include {entry}, which it does not"
            )


def test_sources_have_no_cycle() -> None:
    assert_no_cycle({name: includes(name) for name in SOURCES})


def test_types_of_the_cpu_have_names_of_their_own() -> None:
    """All operators share a namespace: of two types of one name, the linker keeps one silently."""
    found = defaultdict(set)
    for source in (source for source in SOURCES if source.startswith("cpu/")):
        text = (CSRC / source).read_text(encoding="utf-8")
        text = re.sub(r"^namespace \{$.*?^\}  // namespace$", "", text, flags=re.S | re.M)
        for name in re.findall(r"^(?:template <.*> )?(?:struct|class) (\w+)[^;]*?\{", text, re.M):
            found[name].add(source)
    assert {name: sources for name, sources in found.items() if len(sources) > 1} == {}


def test_no_file_is_longer_than_a_sitting() -> None:
    paths = [*MODULES.values(), *(CSRC / name for name in SOURCES)]
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in paths}
    assert not {path: number for path, number in lines.items() if number > 400}


def test_no_function_of_the_package_is_long() -> None:
    """Its signature and docstring do not count."""
    found = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                found[f"{module}.{node.name}"] = lines
    assert not {name: lines for name, lines in found.items() if lines > 100}
