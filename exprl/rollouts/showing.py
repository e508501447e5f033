"""Rollouts as people read them: each cut into segments with the judge's score, status and advantage beside each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from typing import Any

from rich.table import Table

from exprl.rollouts.stored import StoredGroup
from exprl.terminal.console import Console, line
from exprl.terminal.wording import counted
from exprl.types import Advantages, AnyReward, Rollout, Segment, SegmentRewards

LONGEST = 300
"""Characters of a question above a table."""


def records(group: StoredGroup, step: int) -> Iterator[dict[str, Any]]:
    """One JSON-able record a rollout, without token ids and log-probs."""
    for place, rollout in enumerate(group.rollouts):
        reward = group.rewards[place] if group.rewards is not None else None
        advantages = group.advantages[place] if group.advantages is not None else None
        yield {
            "step": step,
            "problem_id": group.problem_id,
            "domain": group.domain,
            "question": group.question.text,
            "response": rollout.text,
            "tokens": len(rollout),
            "finish_reason": rollout.finish_reason,
            "policy_version": rollout.policy_version,
            "scorer": None if group.scorer is None else asdict(group.scorer),
            "label": None if group.labels is None else asdict(group.labels[place]),
            "verdict": None if group.verdicts is None else group.verdicts[place],
            "valid": advantages.valid if advantages is not None else reward is not None and reward.valid,
            "segments": segment_records(rollout, reward, advantages),
        }


def samples(groups: Sequence[StoredGroup], step: int, count: int) -> list[dict[str, Any]]:
    """Records of up to `count` rollouts of a step, to be looked at: domains have turns, and in each its problems.

    The first is of another domain with each step, so that one sample a step shows all of them.
    """
    domains = sorted({group.domain for group in groups})
    first = (step - 1) % max(len(domains), 1)
    every = ([g for g in groups if g.domain == domain] for domain in (*domains[first:], *domains[:first]))
    return list(islice(_by_turns(_by_turns(records(group, step) for group in own) for own in every), count))


def _by_turns(parts: Iterable[Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The first of each, then the second of each."""
    return (one for turn in zip_longest(*parts) for one in turn if one is not None)


def segment_records(rollout: Rollout, reward: AnyReward | None, advantages: Advantages | None) -> list[dict[str, Any]]:
    """Text, score, status, reward and advantage of each segment (of the whole rollout for a rollout reward)."""
    if isinstance(reward, SegmentRewards):
        segments, values = reward.segments, reward.values
    else:
        segments = (Segment(0, len(rollout)),) if len(rollout) else ()
        values = () if reward is None else (reward.value,)
    judgements = () if reward is None else reward.judgements
    unjudged = "cut_off" if reward is not None and reward.cut_off else "not_judged"
    return [
        {
            "text": rollout.text_of(segment.start, segment.end),
            "score": judgement.score if judgement else None,
            "status": judgement.status if judgement else unjudged,
            "rationale": judgement.rationale if judgement else "",
            "reward": value,
            "advantage": advantage,
        }
        for segment, judgement, value, advantage in zip(
            segments,
            _padded(judgements, len(segments)),
            _padded(values, len(segments)),
            _padded(() if advantages is None else advantages.values, len(segments)),
            strict=True,
        )
    ]


def _padded(items: tuple[Any, ...], length: int) -> list[Any]:
    return [*items[:length], *[None] * (length - len(items))]


def print_sample(console: Console, record: Mapping[str, Any]) -> None:
    """One rollout as a table of its segments, the question above them."""
    parts = [
        f"step {record['step']}",
        line(record["problem_id"]),
        counted(record["tokens"], "token"),
        record["finish_reason"],
        *_label(record["label"]),
        *_verdict(record["verdict"]),
        *_scorer(record["scorer"]),
    ]
    title = f"{' · '.join(parts)}\nquestion: {shortened(record['question'])}"
    table = Table(title=title, title_justify="left", show_lines=True, expand=True)
    table.add_column("segment", ratio=1)
    for column in ("score", "status", "reward", "advantage"):
        table.add_column(column, justify="right", no_wrap=True)
    for segment in record["segments"]:
        table.add_row(
            segment["text"].strip(),
            _number(segment["score"]),
            segment["status"],
            _number(segment["reward"]),
            _number(segment["advantage"], sign=True),
        )
    console.print(table)


def shortened(text: str) -> str:
    r"""On one line, and of a long text the beginning and the end, which is where a task says what is asked.

    >>> len(shortened("word " * 200)), shortened("1 +\n 1?")
    (300, '1 + 1?')
    """
    text = line(" ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 3]} [...] {text[-(LONGEST // 2 - 4) :]}"


def _label(label: Mapping[str, Any] | None) -> list[str]:
    """Who wrote the rollout, and what a person says of it."""
    if label is None:
        return []
    said = {True: "labelled right", False: "labelled wrong"}.get(label["correct"])
    where = "" if label["first_error"] is None else f"first error at character {label['first_error']}"
    return [
        *([line(label["author"])] if label["author"] else []),
        *filter(None, [", ".join(filter(None, (said, where)))]),
    ]


def _verdict(verdict: bool | None) -> list[str]:
    return [] if verdict is None else ["accepted" if verdict else "not accepted"]


def _scorer(scorer: Mapping[str, str | None] | None) -> list[str]:
    """Who gave the rewards, as `domains.math: process, same_model`."""
    if scorer is None:
        return []
    said = ", ".join(filter(None, (scorer["reward"], scorer["judge"])))
    return [f"{scorer['route']}: {said}" if scorer["route"] else said]


def _number(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+z.3f}" if sign else f"{value:z.2f}"
