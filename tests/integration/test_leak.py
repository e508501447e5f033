"""The worst bug this project could have: a reference that reaches the policy. These tests try."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.advantages import SegmentDelta
from exprl.build import Build
from exprl.config import from_layers, validate_choice
from exprl.data.canaries import canaries_in, planted
from exprl.data.leakage import find_run, gist, leaked_ngram, longest_shared_ngram, words
from exprl.engines.base import Engine, Sampling
from exprl.engines.transformers import TransformersEngine
from exprl.experiment import Experiment, LeakConfig, OptimizerConfig, UpdateConfig
from exprl.judges.rubric import GENERIC
from exprl.judges.rubric_file import Wanted
from exprl.judges.rubrics import Milestone, Rubric, origins, read_rubrics, rubric_of_steps
from exprl.models.base import LanguageModel
from exprl.objectives import Clipped
from exprl.registry import REWARDS as REWARD_CLASSES, SOURCES
from exprl.resources import Resources
from exprl.rollouts.format import GROUPS, HEADER, IDS, LENGTHS, LOGPROBS, encode
from exprl.rollouts.showing import records
from exprl.rollouts.stored import StoredGroup
from exprl.text.prompts import PromptBuilder
from exprl.training.batching import TokenSequence
from exprl.training.module import ExpRLModule, Parts
from exprl.training.self_distillation import DistillationModule
from exprl.training.world import World
from exprl.types import Hidden, Problem, Prompt, Rollout, RolloutGroup
from exprl.verifiers import ExactVerifier

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "exprl"

MAY_REVEAL = {"judges", "verifiers", "execution/tests.py", "evaluation/evaluate.py", "commands/mine.py", "hidden.py"}
MAY_REVEAL |= {"data/canaries.py", "leaks"}
"""Where `reveal()` may be called: the judge's side, what runs programs, the evaluation's measure of
progress, the data set mined, and where facts are planted in references and looked for in a trained policy."""

BASELINES_MAY_REVEAL = {"training/sft.py", "training/teacher.py"}
"""The two baselines that read references in training, which `rl` never imports: SFT, where the policy itself is meant
to, and the teacher of self-distillation."""


class Recording(Engine):
    """Samples for real and keeps everything it was given."""

    def __init__(self, inner: Engine) -> None:
        super().__init__()
        self.config = inner.config
        self.inner = inner
        self.given: list[Prompt] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        self.given.extend(prompts)
        return self.inner.generate(prompts, sampling)


def write_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [
        {
            "question": f"What is {n} plus {n + 1}?",
            "reference": f"Take the second summand as {n} and one more.\nDouble {n} is {2 * n}.\nPlus 1: {2 * n + 1}.",
            "answer": str(2 * n + 1),
            "steps": [str(2 * n), str(2 * n + 1)],
            "variants": [f"Both summands are one half off {n}.5, so the sum is twice that number: {2 * n + 1}."],
            "rubric": [
                {"title": f"Sees that the double of {n} is meant", "what": f"Twice {n} and one more is {2 * n + 1}."},
                {"title": "Comes to the end of it", "what": f"It finds {2 * n + 1} and nothing else.", "weight": 2},
            ],
            "tests": [{"stdin": f"the pair of {n} and its follower", "stdout": f"{2 * n + 1} comes out of it"}],
        }
        for n in (40, 51)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


COLUMNS = {role: role for role in ("steps", "variants", "rubric", "tests")}


def source(name: str, folder: Path) -> dict[str, Any]:
    if name == "champ":
        return {"name": "champ", "limit": 2}
    if name == "humaneval":
        return {"name": "humaneval", "limit": 2}
    if name == "chain":
        return {"name": "chain", "steps": 3, "count": 2}
    if name in ("reactions", "clauses"):
        return {"name": name, "steps": 3, "count": 2}
    if name == "mix":
        parts = ("jsonl", "chain", "reactions", "clauses", "humaneval")
        return {"name": "mix", "sources": {other: source(other, folder) for other in parts}}
    rows = write_rows(folder)
    if name in ("jsonl", "planted"):
        return {"name": "jsonl", "path": str(folder / "rows.jsonl"), "columns": COLUMNS}
    if name == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
        return {"name": "parquet", "path": str(folder / "rows.parquet"), "columns": COLUMNS}
    if name == "csv":
        with (folder / "rows.csv").open("w", newline="") as file:
            csv.DictWriter(file, rows[0]).writeheader()
            csv.DictWriter(file, rows[0]).writerows(rows)
        return {"name": "csv", "path": str(folder / "rows.csv")}
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(folder / "hub")
    return {"name": "hub", "path": str(folder / "hub"), "columns": COLUMNS}


def kept_of(group: StoredGroup) -> str:
    """What a run's rollouts hold of a problem, but for what a judge wrote: that may quote the reference."""
    assert group.rewards is not None
    silent = [
        replace(reward, judgements=tuple(replace(judgement, rationale="") for judgement in reward.judgements))
        for reward in group.rewards
    ]
    with zipfile.ZipFile(io.BytesIO(encode([replace(group, rewards=tuple(silent))], step=1))) as file:
        assert set(file.namelist()) == {HEADER, GROUPS, IDS, LENGTHS, LOGPROBS}, "the rest are numbers of tokens"
        node = json.loads(file.read(GROUPS))
    assert re.fullmatch("[0-9a-f]{16}", node.pop("digest"))
    for rollout in node["rollouts"]:
        del rollout["text"]  # the policy's own
    return " ".join(strings(node))


def strings(node: Any) -> Iterator[str]:
    """All texts in what JSON can say."""
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for inner in node:
            yield from strings(inner)
    if isinstance(node, str):
        yield node


JUDGES: dict[str, dict[str, Any]] = {
    "same_model": {"name": "same_model", "weights": "frozen"},
    "live": {"name": "same_model", "weights": "live"},
    "rationale": {"name": "same_model", "weights": "frozen", "scoring": "rationale", "max_new_tokens": 4},
    "reference_steps": {"name": "reference_steps", "strict": False},
    "rubric": {"name": "rubric", "min_mass": 0.0},
    "rubric file": {"name": "rubric", "min_mass": 0.0, "rubrics": "rubrics.jsonl", "monotone": True},
}
JUDGES |= {
    f"{name} {wrapper}": {"name": wrapper, "around": JUDGES[name]}
    for name in ("same_model", "rationale", "reference_steps", "rubric", "rubric file")
    for wrapper in ("no_reference", "wrong_reference")
}
REWARDS: dict[str, dict[str, Any]] = {
    "sparse": {"name": "sparse"},
    **{f"outcome {j}": {"name": "outcome", "judge": node} for j, node in JUDGES.items()},
    **{f"process {j}": {"name": "process", "slicer": {"name": "token_window", "window": 4}, "judge": node}
       for j, node in JUDGES.items()},
}  # fmt: skip
REWARDS["process by scores"] = {**REWARDS["process same_model"], "slicer": {"name": "change_point"}}
LENIENT = {"max_failure_rate": 1.0, "clip_length": False}
REWARDS["process by_domain"] = {
    "name": "by_domain",
    "domains": {"math": {**REWARDS["process reference_steps"], **LENIENT}},
    "default": {"name": "sparse"},
}
CASES = [
    (name, "process same_model")
    for name in ("champ", "chain", "reactions", "clauses", "humaneval", "jsonl", "csv", "parquet", "hub", "mix")
]
CASES += [("champ", "process rubric")]  # by its steps
CASES += [("planted", "process same_model"), ("planted", "process reference_steps")]
CASES += [("jsonl", reward) for reward in REWARDS]


@pytest.fixture(autouse=True)
def rubric_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each test stands: the rubrics of `write_rows`, edited."""
    monkeypatch.chdir(tmp_path)
    entries = [
        Wanted(problem=problem, origin=origin).entry(lambda number=number: edited_rubric(number))
        for number, problem in enumerate(
            validate_choice(SOURCES, source("jsonl", tmp_path), "").build(Resources()).load()
        )
        for origin in origins(problem.scaffold)
    ]
    Path("rubrics.jsonl").write_text("".join(entry.line() for entry in entries))


def edited_rubric(number: int) -> Rubric:
    """Titles and criteria that stand in no row."""
    titles = (f"The edited way number {number} is begun", f"The edited way number {number} is ended")
    return Rubric(tuple(Milestone(title=title, what=f"Whoever marks sees that {title.lower()}.") for title in titles))


@pytest.mark.parametrize(("source_name", "reward_name"), CASES)
def test_nothing_of_the_reference_is_in_anything_the_policy_is_given(
    source_name: str, reward_name: str, tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = dict(REWARDS[reward_name]) if "domain" in reward_name else {**LENIENT, **REWARDS[reward_name]}
    if reward_name == "sparse":
        reward.pop("max_failure_rate")
    layer = {"data": {"train": source(source_name, tmp_path)}, "model": {"path": "unused"}, "reward": reward}
    experiment = from_layers(Experiment, [{**layer, "advantage": {"name": "segment_delta"}}])
    assert experiment.data.train is not None
    problems: list[Problem] = experiment.data.train.build(Resources()).load()
    if source_name == "planted":
        canaries = canaries_in(problems, LeakConfig(canaries=1.0), seed=0)
        assert len(canaries) == len(problems)
        problems = planted(problems, canaries)
    verifier = ExactVerifier()
    engine = Recording(TransformersEngine(policy=tiny))
    resources = Resources(policy=tiny, initial_policy=lambda: tiny, problems=problems, verifier=verifier)
    parts = Parts(
        prompts=PromptBuilder(tiny.tokenizer),
        engine=engine,
        reward=experiment.reward.build(resources),
        advantage=SegmentDelta(),
        objective=Clipped(),
        verifier=verifier,
    )
    module = ExpRLModule(
        tiny, parts, Sampling(n=2, max_new_tokens=10), optimizer=OptimizerConfig(), update=UpdateConfig()
    )
    # random weights write no verdict, and a step without a reward would stop a run
    monkeypatch.setattr(parts.reward, "check_step", lambda *_: None)
    monkeypatch.setattr("exprl.rewards.steps.check_any", lambda *_: None)
    scored = module.compare(module.collect(problems))

    sequences = [
        TokenSequence.of(rollout, advantages)
        for s in scored
        for rollout, advantages in zip(s.group.rollouts, s.advantages, strict=True)
    ]
    by_id = {problem.id: problem for problem in problems}
    given = [(prompt.problem_id, prompt.text) for prompt in engine.given]
    given += [(prompt.problem_id, tiny.tokenizer.decode(prompt.token_ids)) for prompt in engine.given]
    stored = [StoredGroup.of(s) for s in scored]
    rows = [record for group in stored for record in records(group, step=1)]
    told = json.dumps(rows)
    assert ("The edited way" in told) is ("rubric file" in reward_name and not reward_name.endswith("no_reference"))
    given += [(row["problem_id"], tiny.tokenizer.decode(s.prompt_ids)) for row, s in zip(rows, sequences, strict=True)]
    assert len(given) == 3 * len(problems) + (len(sequences) - len(problems))
    given += [(group.problem_id, kept_of(group)) for group in stored]
    for problem_id, text in given:
        problem = by_id[problem_id]
        assert problem.question.text in text
        assert problem.scaffold.reference is not None
        for solution in written_of(problem):
            assert leaked_ngram(text, solution, problem.question.text) is None
        for written in milestones_of(problem):
            assert not shows(text, written, problem.question.text), written


def written_of(problem: Problem) -> list[str]:
    """Every text of a scaffold of more than a few words."""
    scaffold = problem.scaffold
    texts = (scaffold.reference, scaffold.rubric, scaffold.tests)
    variants = scaffold.variants.reveal() if scaffold.variants is not None else ()
    return [text.reveal() for text in texts if text is not None] + list(variants)


def milestones_of(problem: Problem) -> list[str]:
    """Titles and criteria of every rubric that a judge may know of a problem."""
    column = read_rubrics(problem.scaffold.rubric.reveal()) if problem.scaffold.rubric is not None else ()
    steps = problem.scaffold.steps.reveal() if problem.scaffold.steps is not None else ()
    rubrics = (*column, rubric_of_steps(steps), *map(edited_rubric, range(2)), GENERIC)
    return [text for rubric in rubrics for milestone in rubric.milestones for text in (milestone.title, milestone.what)]


def shows(text: str, written: str, question: str) -> bool:
    """Whether a text holds four words in a row of a title or criterion, or a shorter one whole; the question not."""
    words, given, asked = gist(written), gist(text), gist(question)
    runs = (words[start : start + 4] for start in range(max(1, len(words) - 3)))
    return any(find_run(run, given) is not None and find_run(run, asked) is None for run in runs)


@pytest.mark.parametrize("judge", [name for name in JUDGES if name.endswith("no_reference")])
@pytest.mark.parametrize("reward", ["outcome", "process"])
def test_without_a_reference_the_verifier_alone_reads_what_is_hidden(
    reward: str, judge: str, tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is handed whole problems, as a careless caller would; whoever reveals anything is noted."""
    problems: list[Problem] = validate_choice(SOURCES, source("jsonl", tmp_path), "data").build(Resources()).load()
    resources = Resources(policy=tiny, initial_policy=lambda: tiny, problems=problems, verifier=ExactVerifier())
    asked = validate_choice(REWARD_CLASSES, REWARDS[f"{reward} {judge}"], "reward").build(resources)
    rollouts = TransformersEngine(policy=tiny).generate(
        [PromptBuilder(tiny.tokenizer).build(problem.question) for problem in problems], Sampling(n=1, max_new_tokens=9)
    )
    groups = [RolloutGroup(problem=problems[index], rollouts=(rollout,)) for index, rollout in rollouts]
    readers, reveal = set[str](), Hidden.reveal

    def noted(self: Hidden[Any]) -> Any:
        readers.add(str(sys._getframe(1).f_globals["__name__"]))
        return reveal(self)

    monkeypatch.setattr(Hidden, "reveal", noted)
    asked.check(problems)
    asked.score(groups)
    assert all(reader.startswith("exprl.verifiers.") for reader in readers), readers
    assert bool(readers) is judge.startswith("reference_steps")


def test_the_search_would_find_a_leak(tmp_path: Path) -> None:
    row = write_rows(tmp_path)[0]
    leaky = f"{row['question']} Hint: {row['reference'].splitlines()[0]}"
    found = leaked_ngram(leaky, row["reference"], row["question"])
    assert found is not None
    for milestone in row["rubric"]:
        assert shows(f"{row['question']} Hint: {milestone['title']}", milestone["title"], row["question"])
        assert shows(f"{row['question']} Hint: {milestone['what'][4:]}", milestone["what"], row["question"])
        assert not shows(row["question"], milestone["what"], row["question"])
    assert len(found.split()) > longest_shared_ngram(words(row["question"]), words(row["reference"]))


def test_a_problem_or_a_scaffold_cannot_become_a_prompt(tiny: LanguageModel, tmp_path: Path) -> None:
    layer = {"data": {"train": source("jsonl", tmp_path)}, "model": {"path": "unused"}}
    train = from_layers(Experiment, [layer]).data.train
    assert train is not None
    problem = train.build(Resources()).load()[0]
    builder, engine = PromptBuilder(tiny.tokenizer), TransformersEngine(policy=tiny)
    for thing in (problem, problem.scaffold, problem.scaffold.reference, problem.question.text):
        with pytest.raises(TypeError, match="Question"):
            builder.build(thing)
        with pytest.raises(TypeError, match="Prompt"):
            engine.generate([thing], Sampling(n=1))
    for careless in (f"{problem}", f"{problem.scaffold}", repr(problem.scaffold.reference), str([problem])):
        assert "second summand" not in careless
        assert "hidden" in careless


def calls_reveal(path: Path) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr == "reveal" for n in ast.walk(ast.parse(path.read_text())))


def test_only_the_judges_side_reveals() -> None:
    revealing = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if calls_reveal(p)}
    assert revealing >= BASELINES_MAY_REVEAL
    for path in revealing - BASELINES_MAY_REVEAL:
        assert path in MAY_REVEAL or path.split("/")[0] in MAY_REVEAL, f"{path} reveals a hidden value"


def imports_of(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    modules = {n.module for n in froms} | {f"{n.module}.{alias.name}" for n in froms for alias in n.names}
    return modules | {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}


def test_nothing_but_its_method_imports_what_reads_references_in_training() -> None:
    importing = {
        name: {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if f"exprl.training.{name}" in imports_of(p)}
        for name in ("sft", "teacher", "self_distillation")
    }
    assert importing == {
        "sft": {"training/methods.py"},
        "teacher": {"training/methods.py"},
        "self_distillation": {"training/methods.py"},
    }


@pytest.mark.usefixtures("forking")  # what is imported before the fork is in `sys.modules` as well
def test_preparing_rl_loads_nothing_that_reads_references() -> None:
    code = """
import sys
from exprl.terminal.console import Console
from exprl.runs.directory import RunDirectory
from exprl.commands.train import TrainingRun
from tests.integration.conftest import ROOT, SMALL
from exprl.experiment import load_experiment
experiment = load_experiment(ROOT / "configs/quickstart.yaml", SMALL)
module = TrainingRun(experiment, RunDirectory("unused"), Console(quiet=True)).prepare()
reading = ("sft", "teacher", "self_distillation")
print(type(module).__name__, [name for name in reading if f"exprl.training.{name}" in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ExpRLModule []", done.stderr[-2000:]


@pytest.mark.parametrize("reward_name", REWARDS)
def test_a_run_that_reads_no_references_holds_none(reward_name: str, tmp_path: Path) -> None:
    layer = {
        "data": {"train": source("jsonl", tmp_path)},
        "model": {"path": "unused"},
        "reward": REWARDS[reward_name],
        "advantage": {"name": "segment_delta" if reward_name.startswith("process") else "group"},
    }
    reads = reward_name != "sparse" and not reward_name.endswith("no_reference")
    for problem in Build(from_layers(Experiment, [layer]), training=True).train_problems:
        held = [getattr(problem.scaffold, name) for name in ("reference", "steps", "variants", "rubric")]
        assert all(value is not None for value in held) if reads else held == [None] * 4
        assert problem.scaffold.answer is not None
        assert problem.scaffold.tests is not None


@pytest.mark.parametrize("source_name", ["champ", "chain", "jsonl"])
def test_self_distillation_samples_from_questions_alone(
    source_name: str, tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = {
        "method": {"name": "self_distillation"},
        "data": {"train": source(source_name, tmp_path)},
        "model": {"path": "unused"},
        "verifier": {"name": "exact"},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 6},
        "update": {"log_kl": False},
    }
    build = Build(from_layers(Experiment, [layer]), training=True)
    build.__dict__["policy"] = tiny
    recording = build.__dict__["engine"] = Recording(build.engine)
    module = build.experiment.method.build(Resources()).prepare(build, World())
    assert isinstance(module, DistillationModule)
    problems = build.train_problems
    update = module.policy_update().plan(module.compare(module.collect(problems)))[0][0]
    sequences = [sequence for batch in update.micro_batches for sequence in batch]

    assert len(recording.given) == len(problems)
    assert len(sequences) == 2 * len(problems)
    decode = tiny.tokenizer.decode
    given = [text for prompt in recording.given for text in (prompt.text, decode(prompt.token_ids))]
    given += [decode(sequence.prompt_ids) for sequence in sequences]
    for problem in problems:
        assert problem.scaffold.reference is not None
        reference, question = problem.scaffold.reference.reveal(), problem.question.text
        assert not any(leaked_ngram(text, reference, question) for text in given if question in text)
        read = [decode(s.teacher_prompt_ids) for s in sequences if question in decode(s.prompt_ids)]
        assert len(read) == 2
        assert all(leaked_ngram(text, reference, question) for text in read), "the teacher does read it"


def test_a_checkpoint_holds_no_reference(small: Any, run: Any, tmp_path: Path) -> None:
    experiment = small("trainer.max_steps=1", "evaluation.source=null")
    run(experiment)
    checkpoint = torch.load(tmp_path / "run/checkpoints/step-000001.ckpt", weights_only=False)
    text = str({key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")})
    problems = experiment.data.train.build(Resources()).load()
    assert not any(p.scaffold.reference.reveal() in text for p in problems)
