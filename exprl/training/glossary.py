"""Every metric of a run: its name in `metrics.jsonl` and TensorBoard, its unit, and what it says.

A test holds this list against what runs of every method log. Plugins may log more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from exprl.evaluation.detectors import BEHAVIOUR_NAMES
from exprl.types import JUDGEMENT_STATUSES

PLACEHOLDERS = {
    "status": "|".join(JUDGEMENT_STATUSES),
    "score": "[1-5]",
    "behaviour": "|".join(BEHAVIOUR_NAMES),
    "k": r"[1-9]\d*",
    "domain": "[^/]+",
}
"""What `<...>` in a name stands for, as patterns."""


@dataclass(frozen=True)
class Metric:
    """What is logged under a name, which may have a `<placeholder>` of `PLACEHOLDERS`.

    `engine` is the one that logs it, where it is one alone.
    """

    name: str
    unit: str
    meaning: str
    engine: str = ""

    def matches(self, name: str) -> bool:
        """Whether a logged name is of this metric.

        >>> Metric("judge/score_<score>", "share", "").matches("judge/score_3")
        True
        """
        pattern = re.sub(r"<(\w+)>", lambda found: f"(?:{PLACEHOLDERS[found[1]]})", re.escape(self.name))
        return re.fullmatch(pattern, name) is not None


METRICS: tuple[Metric, ...] = (
    # rewards
    Metric("reward/mean", "reward", "mean over the step's valid rollouts; of segment rewards each rollout's last one"),
    Metric("reward/std", "reward", "their standard deviation over all rollouts of the step"),
    Metric("reward/within_group_variance", "reward²", "variance within a group, mean over groups; 0: nothing to learn"),
    Metric("reward/invalid_rate", "share", "rollouts left out for a failed or dropped judgement"),
    Metric("reward/segments", "segments", "mean number of segments of a rollout; 1 with a reward for whole rollouts"),
    Metric("reward/single_segment_rate", "share", "rollouts of at most one segment: near 1, the slicer finds no cuts"),
    # the judge
    Metric("judge/count", "judgements", "judgements of a judge asked for in the step"),
    Metric("judge/<status>_rate", "share", f"of the judgements; status: {', '.join(JUDGEMENT_STATUSES)}"),
    Metric("judge/score_<score>", "share", "of the judgements with a score, those that round to 1, 2, 3, 4 or 5"),
    # programs that were run, with the reward `execution`
    Metric("program/count", "programs", "programs judged by their tests in the step"),
    Metric("program/<status>_rate", "share", "of the programs; ok: judged, error: no sandbox, or a test at fault"),
    Metric("program/score_<score>", "share", "of those judged, by 1 + 4 · reward, rounded: score_5 passed all tests"),
    # rollouts
    Metric("rollout/length_mean", "tokens", "mean length of a response"),
    Metric("rollout/length_max", "tokens", "the longest response"),
    Metric("rollout/cut_off_rate", "share", "responses cut off at rollout.max_new_tokens"),
    Metric(
        "rollout/entropy",
        "nats",
        "entropy at a token of all rollouts, estimated by their -log-probs as sampled (temperature, top_p and top_k "
        "applied); falling towards 0 is collapse",
    ),
    Metric("rollout/servers", "servers", "vllm_server: servers that sample", engine="vllm_server"),
    Metric(
        "rollout/servers_lost", "servers", "vllm_server: servers that died in the step, or since", engine="vllm_server"
    ),
    Metric(
        "rollout/resubmitted",
        "requests",
        "vllm_server: requests that a lost server left, asked again of another with the same seeds",
        engine="vllm_server",
    ),
    Metric(
        "rollout/canary_gap",
        "nats",
        "vllm_server: the canary's at the server that was furthest off, after the update before the step's rollouts",
        engine="vllm_server",
    ),
    Metric("behaviour/<behaviour>_rate", "share", f"rollouts that show it, by words: {', '.join(BEHAVIOUR_NAMES)}"),
    # outcomes, where every problem has an answer
    Metric("outcome/accuracy", "share", "rollouts whose final answer the verifier accepts, mean over prompts"),
    Metric("outcome/all_0", "share", "prompts without a right rollout"),
    Metric("outcome/all_1", "share", "prompts with right rollouts alone"),
    Metric("outcome/mixed", "share", "the other prompts: what a sparse reward can learn from"),
    Metric("outcome/unlocked_prompts", "prompts", "training prompts solved at least once since the run began"),
    # of each domain, where the training problems are of several
    Metric(
        "reward/mean/<domain>",
        "reward",
        "mean over the domain's valid rollouts; where training problems are of several domains",
    ),
    Metric(
        "reward/within_group_variance/<domain>", "reward²", "variance within its groups; 0: its route tells none apart"
    ),
    Metric("reward/segments/<domain>", "segments", "mean number of segments of its rollouts"),
    Metric("update/dropped_groups/<domain>", "groups", "its groups without a learning signal, of those in the step"),
    Metric("judge/count/<domain>", "judgements", "judgements on its rollouts"),
    Metric("judge/ok_rate/<domain>", "share", "of these, those with a score"),
    Metric("judge/score_<score>/<domain>", "share", "of those with a score, those that round to 1, 2, 3, 4 or 5"),
    Metric("program/count/<domain>", "programs", "programs of its rollouts that were judged by their tests"),
    Metric("program/ok_rate/<domain>", "share", "of these, those that could be judged"),
    Metric("program/score_<score>/<domain>", "share", "of those, by 1 + 4 · reward, rounded"),
    Metric("rollout/length_mean/<domain>", "tokens", "mean length of a response to a problem of the domain"),
    Metric("rollout/cut_off_rate/<domain>", "share", "responses to its problems that were cut off"),
    Metric("outcome/accuracy/<domain>", "share", "its rollouts that its verifier accepts, mean over prompts"),
    Metric("outcome/all_0/<domain>", "share", "its prompts without a right rollout"),
    Metric("outcome/all_1/<domain>", "share", "its prompts with right rollouts alone"),
    Metric("outcome/mixed/<domain>", "share", "its other prompts"),
    # the update; token means are over what was trained on: valid rollouts of groups that are not dropped
    Metric("update/loss", "nats", "token mean of the policy loss; near 0 by design for centred advantages, not a fit"),
    Metric(
        "update/entropy",
        "nats",
        "entropy of the policy at a token of the update, exact, tempered; of all rollouts: rollout/entropy",
    ),
    Metric(
        "update/kl",
        "nats",
        "estimate (k3) of the KL to the frozen initial policy at a token of the update (update.log_kl)",
    ),
    Metric(
        "update/clipped", "share", "tokens clipped or, by dppo, masked, so without gradient; by cispo cut, with one"
    ),
    Metric("update/ratio", "ratio", "π / π_old of the tokens, with gspo of their rollouts; 1 in a step's first update"),
    Metric(
        "update/is_weight", "ratio", "weight π_old / π_sampler within objective.correction's bounds; far from 1: stale"
    ),
    Metric("update/is_outside", "share", "tokens whose ratio is beyond these bounds: cut by tis, masked by the others"),
    Metric(
        "update/sampler_gap",
        "nats",
        "absolute difference of the engine's log-probs and the trainer's, over the tokens of the update",
    ),
    Metric(
        "update/staleness", "steps", "that rollouts are behind the policy which learns from them (rollout.lookahead)"
    ),
    Metric("update/teacher_kl", "nats", "self_distillation: KL of the policy to its teacher"),
    Metric("update/grad_norm", "norm", "of the gradient before clipping, mean over the step's updates"),
    Metric("update/lr", "rate", "learning rate, mean over the step's updates"),
    Metric("update/count", "updates", "optimizer updates of the step; 0: its console line says why"),
    Metric("update/dropped_groups", "groups", "without a learning signal (update.signal_tolerance), so left out"),
    Metric("update/replaced_groups", "groups", "without a signal, so a fresh prompt took their place"),
    Metric(
        "update/sampling_rounds", "rounds", "of sampling and judging, the first among them (update.dynamic_sampling)"
    ),
    Metric("sft/length_mean", "tokens", "sft: mean length of the references trained on"),
    # time on rank 0
    Metric(
        "time/sampling_seconds", "s", "the engine's, in the step; with rollout.lookahead of the next step's rollouts"
    ),
    Metric("time/judging_seconds", "s", "waiting for rewards after the last rollout"),
    Metric("time/updating_seconds", "s", "log-probs, gradients and optimizer"),
    Metric("time/step_seconds", "s", "the whole step"),
    Metric("time/idle_trainer_seconds", "s", "of it, in which the trainer waited for rollouts and verdicts"),
    Metric("time/idle_sampler_seconds", "s", "of it, in which engine and judge waited for the trainer"),
    Metric("time/tokens_per_second", "tokens/s", "response tokens of all ranks through the whole step"),
    # evaluations, a line of their own
    Metric("evaluation/pass@<k>", "share", "unbiased pass@k, mean over the held-out problems (evaluation.k)"),
    Metric("evaluation/progress", "share", "of the reference's steps reached, where the source has steps"),
    Metric(
        "evaluation/pass@<k>/<domain>", "share", "mean over the domain's problems, where the held-out are of several"
    ),
    Metric("evaluation/progress/<domain>", "share", "of the reference's steps reached in the domain's problems"),
    Metric("evaluation/guess_rate", "share", "samples with the right answer that miss some of the reference's steps"),
    Metric("evaluation/length_mean", "tokens", "mean length of a sample"),
    Metric("evaluation/cut_off_rate", "share", "samples cut off at the length limit"),
    Metric("evaluation/<behaviour>_rate", "share", "samples that show it, by evaluation.behaviours"),
)


def metric_of(name: str) -> Metric | None:
    """The entry of a logged name; None for one that is not of exprl's own."""
    return next((metric for metric in METRICS if metric.matches(name)), None)


def markdown() -> str:
    """The table of `docs/metrics.md`."""
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in METRICS]
    return "\n".join(["| name | unit | what it says |", "|---|---|---|", *rows])
