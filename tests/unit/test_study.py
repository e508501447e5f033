"""Studies before anything is run: the file, the runs it means, and the statistics."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from exprl.errors import ConfigError, RunDirectoryError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.pass_at_k import Interval, bootstrap
from exprl.run_directory import write_json
from exprl.study.plan import Plan
from exprl.study.results import collect, crossed_bootstrap, curve, markdown, rows
from exprl.study.runner import Devices, locked
from exprl.study.runs import TrainingRun, with_parents
from exprl.study.schema import load_study

ROOT = Path(__file__).parents[2]

TEXT = """
experiment: {root}/configs/quickstart.yaml
study_dir: {folder}/study
seeds: [0, 1]
baseline: grpo
overrides: {{optimizer: {{lr: 1.0e-4}}}}
stages:
  process: {{}}
  sparse: {{reward: {{name: sparse}}, advantage: {{name: group}}}}
  again: {{advantage: {{name: group}}, reward: {{name: sparse}}}}
arms:
  base: []
  grpo: [sparse, sparse]
  process: [process, sparse]
  twin: [process, again]
"""


@pytest.fixture
def make(tmp_path):
    def make(*overrides, text=TEXT, name="my.yaml"):
        (tmp_path / name).write_text(text.format(root=ROOT, folder=tmp_path))
        return Plan.load(tmp_path / name, overrides)

    return make


class TestSchema:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("arms.process=[proces]", r"arms\.process\[0\]: unknown stage 'proces'\. Did you mean 'process'"),
            ("baseline=gpro", r"baseline: unknown arm 'gpro'\. Did you mean 'grpo'"),
            ("sedes=[1]", r"sedes: unknown option\. Did you mean 'seeds'"),
            ("seeds=[1,1]", r"seeds: needs one or more different numbers"),
            ("seeds=[]", r"seeds: needs one or more different numbers"),
            ("arms.tune=[]", r"arms\.tune: names a folder"),
            ("stages.a/b.seed=1", r"stages\.a/b: names a folder"),
            ("tune.key=optimizer.lr", r"tune\.values: required"),
            ("tune={key: optimizer.lr, values: [1.0]}", r"tune\.values: needs at least two"),
            ("tune={key: optimizer.lr, values: [1.0, 2.0], seeds: [1]}", r"tune\.seeds: \[1\] share some with seeds"),
            ("tune={key: optimizer.rate, values: [1.0, 2.0]}", r"tune: optimizer\.rate=1\.0 .* unknown option"),
            ("tune={key: optimizer.lr, values: [1.0, 2.0], measure: pass@3}", r"tune\.measure: 'pass@3'"),
            ("stages.process.optimizer.lrr=1", r"stages\.process\.optimizer\.lrr: unknown option\. Did you mean 'lr'"),
            ("overrides.evaluation.source=null", r"evaluation\.source: required in a study"),
            ("experiment=nowhere.yaml", r"No config file"),
            ("mine.samples=0", r"mine: needs samples >= 1"),
            ("mine.min_rate=0.5", r"mine: needs samples >= 1 and 0 <= min_rate <= max_rate"),
        ],
    )
    def test_a_mistake_is_named(self, make, override, message):
        with pytest.raises(ConfigError, match=message):
            make(override)

    def test_overrides_go_into_mappings(self, make):
        study = load_study(make().file, ["overrides.trainer.max_steps=3", "stages.process.optimizer.lr=0.5"])
        assert study.overrides == {"optimizer": {"lr": 1e-4}, "trainer": {"max_steps": 3}}
        assert study.stages["process"] == {"optimizer": {"lr": 0.5}}
        assert set(study.stages) == {"process", "sparse", "again"}

    def test_a_study_extends_another(self, make):
        make()
        short = make(
            text="extends: my.yaml\nseeds: [7]\nstages: {{process: {{optimizer: {{lr: 0.5}}}}}}\n", name="b.yaml"
        )
        assert short.study.seeds == [7]
        assert short.run(short.arms["process"][0], 7, {}).experiment.optimizer.lr == 0.5


class TestPlan:
    def test_equal_stages_after_equal_stages_are_run_once(self, make):
        plan = make()
        assert plan.arms["process"] == plan.arms["twin"]  # the same options under another name
        assert plan.arms["grpo"][0] != plan.arms["process"][1]  # sparse from the start is another run
        runs = with_parents([plan.run(p, s, {}) for s in (0, 1) for p in plan.places(plan.arms)])
        assert [run.name for run in runs] == [
            f"{arm}/seed-{seed}/{folder}"
            for seed in (0, 1)
            for arm, folder in [
                ("base", "0-initial"),
                ("grpo", "1-sparse"),
                ("process", "1-process"),
                ("grpo", "2-sparse"),
                ("process", "2-sparse"),
            ]
        ]

    def test_what_a_run_is_told(self, make):
        plan = make("overrides.model.seed=${seed}")
        first, second = (plan.run(place, 1, {}) for place in plan.arms["process"])
        assert (first.experiment.seed, first.experiment.model.config.seed) == (1, 1)
        assert first.experiment.optimizer.lr == 1e-4
        assert first.experiment.run_dir == str(plan.folder / "process/seed-1/1-process")
        assert second.parent == first
        assert (second.experiment.model.name, second.experiment.model.config.path) == (
            "pretrained",
            first.experiment.run_dir,
        )
        assert second.experiment.reward.name == "sparse"

    def test_a_later_stage_does_not_inherit_a_judge_with_references(self, make):
        with pytest.raises(ConfigError, match=r"stages\.lazy\.reward\.name: required.*stage 2 of arm 'bad'.*'process'"):
            make("stages.lazy={}", "arms.bad=[sparse,lazy]")
        make("stages.lazy.reward.name=process", "arms.good=[sparse,lazy]")  # says so itself
        make("stages.lazy={}", "arms.good=[lazy]")

    def test_a_later_stage_does_not_inherit_a_method_that_reads_references(self, make):
        message = r"stages\.sparse\.method\.name: required.*'sft', which reads references.*method: {name: rl}"
        with pytest.raises(ConfigError, match=message):
            make("overrides.method.name=sft")

    def test_tuning_runs(self, make):
        tune = (
            "tune={key: optimizer.lr, values: [1.0e-3, 1.0e-2], seeds: [100], overrides: {data: {prompts_per_step: 9}}}"
        )
        plan = make(tune)
        (places,) = plan.tuned_places(plan.arms)
        assert [place.label for place in places] == ["grpo/1-sparse", "process/1-process"]
        run = plan.tuning_run(places[1], 1e-2, 100, {})
        assert run.name == "tune/process/1-process/0.01/seed-100"
        assert (run.experiment.optimizer.lr, run.experiment.data.prompts_per_step) == (1e-2, 9)
        chosen = {"process/1-process": 1e-2}
        first, second = (plan.run(place, 0, chosen) for place in plan.arms["process"])
        assert (first.experiment.optimizer.lr, second.experiment.optimizer.lr) == (1e-2, 1e-4)
        assert first.experiment.data.prompts_per_step == 36

    def test_mined_problems_take_the_place_of_all(self, make):
        plan = make("mine.samples=8", "mine.max_rate=0.5")
        train, test = plan.mining_runs(plan.arms)
        assert (train.experiment.data.train.config.split, test.experiment.data.train.config.split) == ("train", "test")
        assert train.experiment.evaluation.samples_per_prompt == 8
        assert train.experiment.evaluation.source is None
        assert train.arguments[-4:] == ["--min-rate", "0.0", "--max-rate", "0.5"]
        for place in plan.arms["process"]:
            told = plan.run(place, 1, {}).experiment
            assert (told.data.train.name, told.data.train.config.path) == ("jsonl", str(train.dataset))
            assert told.evaluation.source.config.path == str(test.dataset)

    def test_the_tuning_problems_are_mined_as_well(self, make):
        tune = "tune={key: optimizer.lr, values: [1.0, 2.0], overrides: {evaluation: {source: {seed: 9}}}}"
        plan = make("mine.samples=8", tune)
        *_, own = runs = plan.mining_runs(plan.arms)
        assert len(runs) == 3
        assert own.experiment.data.train.config.seed == 9
        trial = plan.tuning_run(plan.arms["process"][0], 1.0, 100, {})
        assert trial.experiment.evaluation.source.config.path == str(own.dataset)

    def test_tuning_every_stage_starts_from_what_was_chosen_before(self, make):
        plan = make("tune={key: optimizer.lr, values: [1.0e-3, 1.0e-2], seeds: [100], stages: all}")
        _, second = plan.tuned_places(plan.arms)
        assert [place.label for place in second] == ["grpo/2-sparse", "process/2-sparse"]
        run = plan.tuning_run(second[1], 1e-3, 100, {"process/1-process": 1e-2})
        assert run.parent is not None
        assert run.parent.name == "tune/process/1-process/0.01/seed-100"

    def test_another_study_in_the_folder_is_refused_with_the_difference(self, make):
        make().claim()
        make().claim()
        with pytest.raises(RunDirectoryError, match=r"overrides\.optimizer\.lr: 0\.0001 -> 0\.5"):
            make("overrides.optimizer.lr=0.5").claim()

    def test_a_changed_experiment_is_another_study(self, make, tmp_path):
        (tmp_path / "base.yaml").write_text((ROOT / "configs/quickstart.yaml").read_text())
        make("experiment=base.yaml").claim()
        text = (tmp_path / "base.yaml").read_text()
        (tmp_path / "base.yaml").write_text(text.replace("max_steps: 40", "max_steps: 41"))
        with pytest.raises(RunDirectoryError, match=r"trainer\.max_steps: 40 -> 41"):
            make("experiment=base.yaml").claim()

    def test_unknown_arm(self, make):
        with pytest.raises(ConfigError, match=r"--only: unknown arm 'proces'\. Did you mean 'process'"):
            make().check_arms(["proces"])


def brute_force(values):
    """Every resample of seeds and problems there is."""
    seeds, problems = values.shape
    return np.array(
        [
            values[np.ix_(rows, columns)].mean()
            for rows in itertools.product(range(seeds), repeat=seeds)
            for columns in itertools.product(range(problems), repeat=problems)
        ]
    )


class TestBootstrap:
    values = np.random.default_rng(1).random((3, 4))

    def test_is_that_of_all_resamples(self):
        ours = crossed_bootstrap(self.values, resamples=200_000)
        low, high = np.quantile(brute_force(self.values), [0.025, 0.975])
        assert ours.mean == pytest.approx(self.values.mean())
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.005)

    def test_a_paired_difference_is_too(self):
        other = self.values + np.random.default_rng(2).normal(0.1, 0.3, self.values.shape)
        ours = crossed_bootstrap(other - self.values, resamples=200_000)
        low, high = np.quantile(brute_force(other - self.values), [0.025, 0.975])
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.01)

    def test_of_one_seed_agrees_with_scipy(self):
        values = np.random.default_rng(3).beta(0.5, 1.5, size=60)
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(4)
        ).confidence_interval
        ours = crossed_bootstrap(values[None])
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)

    def test_seeds_that_differ_widen_it(self):
        problems = np.random.default_rng(5).random(50)
        equal = np.stack([problems] * 4)
        apart = equal + np.array([[-0.3], [-0.1], [0.1], [0.3]])
        narrow, wide = crossed_bootstrap(equal), crossed_bootstrap(apart)
        assert narrow.high - narrow.low == pytest.approx(np.diff(_ends(bootstrap(problems)))[0], abs=0.01)
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)

    def test_is_repeatable(self):
        assert crossed_bootstrap(self.values) == crossed_bootstrap(self.values)

    @pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan)])
    def test_refuses_what_has_no_mean(self, values):
        with pytest.raises(ValueError, match="one finite value a seed and problem"):
            crossed_bootstrap(values)


def _ends(interval: Interval):
    return [interval.low, interval.high]


def outcome(correct, samples=4, ids=None):
    return EvaluationResult(
        problem_ids=tuple(ids or (f"p{index}" for index in range(len(correct)))),
        correct=tuple(correct),
        samples=samples,
        progress=None,
        guessed=None,
        length=5.0,
        cut_off=0.0,
        ks=(1, 4),
    )


def finish(plan, arm, number, seed, correct, **options):
    """What a finished run leaves, made by hand."""
    place = plan.arms[arm][-1] if number == 0 else plan.arms[arm][number - 1]
    run = plan.run(place, seed, {})
    write_json(run.result, outcome(correct, **options).to_json())
    if isinstance(run, TrainingRun):
        write_json(run.directory / "summary.json", {})
    return run


class TestResults:
    @pytest.fixture
    def plan(self, make):
        plan = make()
        for seed in (0, 1):
            finish(plan, "base", 0, seed, [0, 1])
            finish(plan, "grpo", 1, seed, [0, 2])
            finish(plan, "process", 1, seed, [2, 4])
        finish(plan, "grpo", 2, 0, [1, 2])
        return plan

    def test_figures_by_hand(self, plan):
        json = collect(plan, {}).to_json()
        process = json["arms"]["process"][0]
        assert process["measures"]["pass@1"]["mean"] == 0.75
        assert process["measures"]["pass@4"]["mean"] == 1.0
        assert [run["seed"] for run in process["runs"]] == [0, 1]
        assert process["runs"][0]["counts"] == "process/seed-0/1-process/evaluation/after.json"
        assert json["differences"]["1"]["pass@1"]["process"]["grpo"]["mean"] == pytest.approx(0.75 - 0.25)
        assert json["differences"]["1"]["pass@4"]["base"]["grpo"]["mean"] == 0.0
        assert json["differences"]["1"]["pass@1"]["grpo"]["process"]["mean"] == pytest.approx(-0.5)
        assert json["arms"]["twin"] == json["arms"]["process"]
        assert json["arms"]["grpo"][1]["runs"][0]["seed"] == 0
        assert json["arms"]["base"][0]["stage"] is None

    def test_differences_are_paired(self, plan):
        # process is 2 right samples better on each problem, whatever the problem: no spread is left
        difference = collect(plan, {}).to_json()["differences"]["1"]["pass@1"]["process"]["grpo"]
        assert difference["interval_95"] == pytest.approx([0.5, 0.5])

    def test_tables(self, plan):
        findings = collect(plan, {})
        header, body = rows(findings, 1, ["pass@1"])
        assert header == ["arm", "stage", "seeds", "pass@1", "− grpo"]
        assert [line[:3] for line in body] == [
            ["base", "–", "2"],
            ["grpo", "sparse", "2"],
            ["process", "process", "2"],
            ["twin", "process", "2"],
        ]
        assert body[2][3].startswith("75.0 (")
        assert body[2][4] == "+50.0 (+50.0 to +50.0)"
        assert body[1][4] == "–"
        text = markdown(findings, ["process/seed-0/2-sparse"])
        assert "| **process** | +62.5 (+50.0 to +75.0) | +50.0 (+50.0 to +50.0) | – |" in text
        assert "## After stage 2" in text
        assert "- process/seed-0/2-sparse" in text

    def test_other_problems_cannot_be_paired(self, plan):
        finish(plan, "process", 2, 0, [1, 1], ids=["other", "ones"])
        with pytest.raises(Exception, match=r"process/seed-0/2-sparse: evaluated on other problems"):
            collect(plan, {})

    def test_curves_are_means_over_the_seeds_that_have_a_value(self, plan):
        run, other = (plan.run(plan.arms["process"][0], seed, {}) for seed in (0, 1))
        run.directory.joinpath("metrics.jsonl").write_text('{"step": 1, "e": 1.0}\n{"step": 2, "e": null}\n')
        other.directory.joinpath("metrics.jsonl").write_text('{"step": 1, "e": 3.0}\n{"step": 2, "e": 5.0}\n')
        entry = next(entry for entry in collect(plan, {}).entries if entry.arm == "process")
        found = curve(entry, "e")
        assert (found.steps, found.mean, found.low, found.high) == ((1, 2), (2.0, 5.0), (1.0, 5.0), (3.0, 5.0))
        assert curve(entry, "nothing") is None


class TestRunner:
    def test_devices(self):
        four = ("4", "5", "6", "7")
        slots = [Devices(jobs=2, gpus=four).environment(slot, {}) for slot in range(2)]
        assert [told["CUDA_VISIBLE_DEVICES"] for told in slots] == ["4,5", "6,7"]
        shared = [Devices(jobs=3, gpus=("0", "1")).environment(slot, {}) for slot in range(3)]
        assert [told["CUDA_VISIBLE_DEVICES"] for told in shared] == ["0", "1", "0"]
        assert "CUDA_VISIBLE_DEVICES" not in Devices(jobs=2).environment(0, {})
        assert Devices(jobs=2).environment(0, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"

    def test_visible_devices_are_those_of_the_environment(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        assert Devices.found(None) == Devices(jobs=2, gpus=("3", "5"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert Devices.found(None) == Devices(jobs=1)

    def test_a_folder_has_one_study_at_a_time(self, tmp_path):
        with locked(tmp_path, print), pytest.raises(RunDirectoryError, match="study_dir"), locked(tmp_path, print):
            pass
        with locked(tmp_path, print):
            pass
