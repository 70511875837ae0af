"""Import rules: a module imports only from its own package or from lower layers."""

from __future__ import annotations

import ast
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


def test_no_file_is_longer_than_a_sitting() -> None:
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 400}
    assert not long
