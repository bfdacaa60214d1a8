"""``python -m realalloc``."""

from __future__ import annotations

import sys

from realalloc.cli import main

if __name__ == "__main__":
    sys.exit(main())
