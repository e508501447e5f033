"""`exprl`, rank 1 of which is started otherwise: with the `options`, or in the `folder`, of DIFFERS."""

from __future__ import annotations

import json
import os
import sys

from exprl.cli import main

if __name__ == "__main__":
    differs = json.loads(os.environ["DIFFERS"]) if os.environ["RANK"] == "1" else {}
    os.chdir(differs.get("folder", "."))
    main([*sys.argv[1:], *differs.get("options", [])])
