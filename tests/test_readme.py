"""The Python examples of the README run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from egcnn.comparison import networks

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
def test_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_table_of_networks_is_what_the_command_prints() -> None:
    text = README.read_text(encoding="utf-8")
    assert "\n".join(networks(4, 3, 32, (160, 192, 128))) in text
