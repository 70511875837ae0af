"""Import rules of egcnn and include rules of csrc: each part uses only those listed for it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "egcnn"

#: From the lowest layer up; entries of one line do not import each other.
FLOORS = (
    ("egcnn", "egcnn._C"),
    ("egcnn.errors", "egcnn.machine", "egcnn.terminal", "egcnn.legacy"),
    ("egcnn.settings", "egcnn.files", "egcnn.checks"),
    ("egcnn.ops",),
    ("egcnn.regions",),
    ("egcnn.data",),
    ("egcnn.nn",),
    ("egcnn.losses", "egcnn.metrics"),
    ("egcnn.checkpoint",),
    ("egcnn.inference",),
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

CSRC = PACKAGE.parent / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*.*") if path.is_file())
#: What each part of csrc may include besides itself. An operator's folder in cpu knows no other's.
INCLUDES = {
    "operators.inc": (),
    "math": (),
    "ops.h": ("operators.inc", "math"),
    "cpu/simd": ("math",),
    "cpu/OPERATOR": ("cpu/simd", "math", "ops.h"),
    "cpu": ("operators.inc", "ops.h"),
    "cuda": ("operators.inc", "math", "ops.h"),
    "bindings.cpp": ("operators.inc", "ops.h", "pybind11"),
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


def test_a_package_has_no_cycle() -> None:
    """Modules within a package do not import each other in a cycle."""
    waiting = {
        module: {name for name in imports(module) if name != part(module) and name in MODULES}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    while waiting:
        free = [name for name, others in waiting.items() if not others & set(waiting)]
        assert free, f"these import each other: {', '.join(sorted(waiting))}"
        for name in free:
            del waiting[name]


def source_part(path: Path) -> str:
    """The part of csrc that a source belongs to, such as ``"cpu/sobel"`` or ``"ops.h"``."""
    *folders, name = path.relative_to(CSRC).parts
    return "/".join(folders) or name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_includes_come_from_where_they_may(path: Path) -> None:
    own = source_part(path)
    allowed = INCLUDES.get(own, INCLUDES["cpu/OPERATOR"])
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
        other = (path.parent / name).resolve()
        if other.exists():  # all but build_info.h, which setup.py writes
            assert source_part(other) in (own, *allowed), name
    for package in re.findall(r"^#include <(pybind11|torch|ATen|c10)\b", text, re.MULTILINE):
        assert package in allowed, package


def test_types_of_the_cpu_have_names_of_their_own() -> None:
    """All operators share a namespace: of two types of one name, the linker keeps one silently."""
    found = defaultdict(set)
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"^namespace \{$.*?^\}  // namespace$", "", text, flags=re.S | re.M)
        for name in re.findall(r"^(?:template <.*> )?(?:struct|class) (\w+)[^;]*?\{", text, re.M):
            if source_part(path).startswith("cpu/"):
                found[name].add(path.relative_to(CSRC))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_file_is_longer_than_a_sitting() -> None:
    files = [*MODULES.values(), *SOURCES]
    long = {path for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert not long
