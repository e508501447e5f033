"""Studies before anything is run: the file, the runs it means, and what is made of their results."""

import re
from pathlib import Path

import pytest

from exprl.commands.study import check_kept, check_runs
from exprl.errors import ConfigError, DataError, RunDirectoryError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.intervals import Interval
from exprl.files.disk import write_json
from exprl.resources import Resources
from exprl.study.plan import Plan
from exprl.study.results import _cell, collect, curve, markdown, rows
from exprl.study.runner import Devices, locked
from exprl.study.runs import TrainingRun, with_parents

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
            ("mine.samples=0", r"^mine\.samples: must be in \[1, "),
            ("mine.min_rate=0.5", r"^mine\.min_rate: must be at most max_rate \(0\.0\), but got 0\.5"),
        ],
    )
    def test_a_mistake_is_named(self, make, override, message):
        with pytest.raises(ConfigError, match=message):
            make(override)

    def test_overrides_go_into_mappings(self, make):
        study = make("overrides.trainer.max_steps=3", "stages.process.optimizer.lr=0.5").study
        assert study.overrides == {"optimizer": {"lr": 1e-4}, "trainer": {"max_steps": 3}}
        assert study.stages["process"] == {"optimizer": {"lr": 0.5}}
        assert set(study.stages) == {"process", "sparse", "again"}

    def test_swapping_a_name_over_the_file_drops_what_the_new_component_lacks(self, make):
        judged = TEXT.replace(
            "process: {{}}", "process: {{reward: {{name: outcome, judge: {{name: reference_steps}}}}}}"
        )
        plan = make("stages.process.reward.name=sparse", text=judged)
        assert plan.run(plan.arms["process"][0], 0, {}).experiment.reward.name == "sparse"

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
        first, second = (plan.run(place, 1, {}).experiment.data.train.config.columns for place in plan.arms["process"])
        assert (first.reference, first.steps) == ("reference", "steps")
        assert (second.reference, second.steps) == (None, None)  # the second stage cannot even name one

    def test_mined_problems_need_have_neither_steps_nor_references(self, make):
        plan = make("mine.samples=8")
        train, _ = plan.mining_runs(plan.arms)
        train.dataset.parent.mkdir(parents=True)
        train.dataset.write_text('{"id": "a", "question": "1+1?", "answer": "2", "domain": "math", "samples": 8}\n')
        (problem,) = plan.run(plan.arms["grpo"][0], 0, {}).experiment.data.train.build(Resources()).load()
        assert (problem.id, problem.scaffold.reference, problem.scaffold.steps) == ("a", None, None)

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

    def test_arms_that_differ_for_some_seed_are_not_one(self, make):
        fixed, own = "stages.fixed={model: {seed: 0}}", "stages.own={model: {seed: '${seed}'}}"  # alike for seed 0
        plan = make(fixed, own, "arms={fixed: [fixed], own: [own], grpo: [sparse]}")
        runs = [plan.run(plan.arms[arm][0], 1, {}) for arm in ("fixed", "own")]
        assert [run.experiment.model.config.seed for run in runs] == [0, 1]
        assert runs[0].name != runs[1].name

    def test_every_source_that_some_run_reads_is_mined(self, make):
        tune = "tune={key: data.train.count, values: [30, 40], seeds: [100]}"
        plan = make("mine.samples=8", "overrides.data.train.seed=${seed}", tune)
        values = ({place.label: value for place in plan.places(plan.arms)} for value in (30, 40))
        runs = [
            plan.run(place, seed, chosen) for chosen in values for place in plan.places(plan.arms) for seed in (0, 1)
        ]
        runs += [
            run for group in plan.tuned_places(plan.arms) for p in group for by in plan.trials(p, {}) for run in by
        ]
        read = {
            str(s.config.path) for run in runs for s in (run.experiment.data.train, run.experiment.evaluation.source)
        }
        assert read <= {str(run.dataset) for run in plan.mining_runs(plan.arms)}
        assert len(read) == 7  # train of seeds 0, 1 and 100 with 30 and with 40, and the held-out ones

    def test_mining_samples_as_the_evaluation_does(self, make):
        plan = make("mine.samples=8", "overrides.evaluation.temperature=0.5", "overrides.evaluation.max_new_tokens=17")
        evaluation = plan.mining_runs(plan.arms)[0].experiment.evaluation
        assert (evaluation.temperature, evaluation.max_new_tokens, evaluation.samples_per_prompt) == (0.5, 17, 8)

    def test_other_rates_are_other_problems(self, make):
        names = [make("mine.samples=8", f"mine.max_rate={rate}").mining_runs(["grpo"])[0].name for rate in (0.5, 0.6)]
        assert names[0] != names[1]

    def test_too_few_mined_problems(self, make):
        (train, _) = make("mine.samples=8").mining_runs(["grpo"])
        summary = {"kept": 35, "problems": 64, "rates": [0.0, 0.0], "samples_per_problem": 8}
        write_json(train.result, summary)
        with pytest.raises(DataError, match=r"mine: 35 of 64 problems .* a step needs 36"):
            check_kept([train])
        write_json(train.result, {**summary, "kept": 36})
        check_kept([train])

    def test_arms_are_compared_on_the_same_problems(self, make):
        with pytest.raises(ConfigError, match=r"stages\.process\.evaluation\.source: must be one for all"):
            make("stages.process.evaluation.source.steps=4")
        with pytest.raises(ConfigError, match=r"evaluation\.source: must be one for all"):
            make("overrides.evaluation.source.seed=${seed}")

    def test_tuned_values_have_folders_of_their_own(self, make):
        with pytest.raises(ConfigError, match=r"tune\.values: .* must differ"):
            make("tune={key: prompt.template, values: ['a {question}', 'a_{question}']}")

    def test_the_tuning_runs_must_measure_what_decides(self, make):
        tune = "tune={key: optimizer.lr, values: [1.0, 2.0], measure: pass@1, overrides: {evaluation: {k: [2]}}}"
        with pytest.raises(ConfigError, match=r"tune\.measure: 'pass@1' is not measured. Choose pass@2"):
            make(tune)

    def test_a_run_with_other_options_is_refused_with_the_difference(self, make):
        place = make().arms["grpo"][0]
        make().run(place, 0, {}).prepare()
        make("overrides.trainer.devices=2", "seeds=[0,1,2]").run(place, 0, {}).check()
        for override, message in (
            ("overrides.optimizer.lr=0.5", r"optimizer\.lr: 0\.0001 -> 0\.5"),
            ("overrides.trainer.max_steps=41", r"trainer\.max_steps: 40 -> 41"),  # finished runs would not train on
        ):
            with pytest.raises(RunDirectoryError, match=message):
                make(override).run(place, 0, {}).check()

    def test_a_run_of_any_arm_with_other_options_stops_the_study(self, make):
        plan = make()
        plan.run(plan.arms["process"][0], 1, {}).prepare()
        check_runs(plan)
        with pytest.raises(RunDirectoryError, match=r"process/seed-1/1-process was begun with other options"):
            check_runs(make("stages.process.optimizer.lr=0.5"))

    def test_a_stage_whose_beginning_was_deleted_is_not_kept(self, make):
        plan = make()
        first = finish(plan, "process", 1, 0, [1, 1])
        first.prepare()
        second = finish(plan, "process", 2, 0, [1, 1])
        second.prepare()
        check_runs(plan)
        (first.directory / "summary.json").unlink()
        with pytest.raises(RunDirectoryError, match=r"2-sparse was begun from .*1-process, which is not finished any"):
            check_runs(plan)

    def test_a_study_may_move(self, make, tmp_path):
        plan = make("mine.samples=8")
        finish(plan, "process", 1, 0, [1, 1]).prepare()
        finish(plan, "process", 2, 0, [1, 1]).prepare()
        (tmp_path / "study").rename(tmp_path / "elsewhere")
        moved = make("mine.samples=8", f"study_dir={tmp_path}/elsewhere")
        assert moved.run(moved.arms["process"][1], 0, {}).finished
        check_runs(moved)

    def test_what_mining_does_not_depend_on_may_change(self, make):
        for run in make("mine.samples=8").mining_runs(["grpo"]):
            run.prepare()
        check_runs(make("mine.samples=8", "overrides.trainer.max_steps=99"))
        assert not any(run.config.is_file() for run in make("mine.samples=9").mining_runs(["grpo"]))

    def test_unknown_arm(self, make):
        with pytest.raises(ConfigError, match=r"--only: unknown arm 'proces'\. Did you mean 'process'"):
            make().check_arms(["proces"])


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
        # process is 2 right samples better on each problem, whatever the problem: only what was not seen is left, one
        # of three weights on differences of -1 and 1
        difference = collect(plan, {}).to_json()["differences"]["1"]["pass@1"]["process"]["grpo"]
        most = 1 - 0.025 ** (1 / 2)
        assert difference["interval_95"] == pytest.approx([0.5 - 1.5 * most, 0.5 + 0.5 * most], rel=0.03)

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
        assert body[2][4].startswith("+50.0 (-")
        assert body[1][4] == "–"
        text = markdown(findings, ["process/seed-0/2-sparse"])
        assert re.search(r"\| \*\*process\*\* \| \+62\.5 \(-\S+ to \S+\) \| \+50\.0 \(-\S+ to \S+\) \| – \|", text)
        assert "## After stage 2" in text
        assert "- process/seed-0/2-sparse" in text

    def test_an_unfinished_baseline_is_not_replaced_by_its_earlier_stage(self, plan):
        finish(plan, "process", 2, 0, [4, 4])
        assert rows(collect(plan, {}), 2, ["pass@1"])[0][-1] == "− grpo"
        (plan.run(plan.arms["grpo"][1], 0, {}).directory / "summary.json").unlink()
        assert rows(collect(plan, {}), 2, ["pass@1"])[0][-1] == "pass@1"
        assert set(collect(plan, {}).to_json()["differences"]["2"]["pass@1"]["process"]) == {"base", "twin"}

    def test_a_column_of_differences_has_its_baseline_among_the_rows(self, make):
        plan = make("arms.grpo=[sparse]")
        for arm, number in (("base", 0), ("grpo", 1), ("process", 1), ("process", 2)):
            finish(plan, arm, number, 0, [1, 2])
        header, body = rows(collect(plan, {}), 2, ["pass@1"])
        assert header[-1] == "− grpo"
        assert [line[:2] for line in body] == [
            ["base", "–"],
            ["grpo", "sparse"],
            ["process", "sparse"],
            ["twin", "sparse"],
        ]
        assert "| **grpo** |" in markdown(collect(plan, {}), []).partition("After stage 2")[2]

    def test_no_column_where_no_row_has_a_difference(self, make):
        plan = make()
        finish(plan, "grpo", 1, 0, [1, 2])
        assert rows(collect(plan, {}), 1, ["pass@1"])[0] == ["arm", "stage", "seeds", "pass@1"]
        finish(plan, "process", 1, 1, [1, 2])  # of another seed
        assert rows(collect(plan, {}), 1, ["pass@1"])[0] == ["arm", "stage", "seeds", "pass@1"]

    def test_no_difference_is_no_negative_zero(self, plan):
        assert _cell(Interval(mean=-0.0, low=-1e-9, high=0.0), sign=True) == "+0.0 (+0.0 to +0.0)"
        assert _cell(Interval(mean=-1e-9, low=-0.2, high=0.0)) == "0.0 (-20.0 to 0.0)"

    def test_a_share_s_interval_is_one_of_shares(self, make):
        plan = make()
        for seed, correct in enumerate(([0, 0], [0, 1])):
            finish(plan, "process", 1, seed, correct)
        low, high = collect(plan, {}).to_json()["arms"]["process"][0]["measures"]["pass@1"]["interval_95"]
        assert (low, high > 0.5) == (0.0, True)  # two seeds say next to nothing

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

    def test_cores_are_shared_out_over_jobs_and_their_ranks(self, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 32)
        eight = tuple(map(str, range(8)))
        threads = [
            Devices(jobs=j, gpus=g).environment(0, {})["OMP_NUM_THREADS"] for j, g in ((1, eight), (2, eight), (2, ()))
        ]
        assert threads == ["4", "4", "16"]

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
