"""`python -m veneer`: the command line."""

from __future__ import annotations

import sys

from veneer.cli import main

sys.exit(main())
