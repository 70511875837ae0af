"""``python -m egcnn`` is the ``egcnn`` command."""

from __future__ import annotations

from egcnn.cli import main

if __name__ == "__main__":
    main()
