"""`python -m exprl`."""

import sys
from pathlib import Path

import exprl

# Python puts the working directory before everything else, where a file called as a library would be taken for it.
if not sys.flags.safe_path:
    here = sys.path.pop(0)
    if Path(here).resolve() == Path(exprl.__file__).resolve().parents[1]:
        sys.path.append(here)  # a checkout that is not installed

from exprl.cli import main

if __name__ == "__main__":
    main()
