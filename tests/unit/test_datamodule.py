"""The DataModule under a real Trainer with manual optimization: what is trained on, straight and after a resume."""

import warnings
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer

from exprl.data import order
from exprl.data.datamodule import ExpRLDataModule
from exprl.data.fingerprint import fingerprint, first_difference
from exprl.data.order import Part, mixed_indices, shuffled, step_indices
from exprl.errors import ConfigError, DataError
from exprl.types import Hidden, Problem, Question, Scaffold


def problems(count: int, text: str = "question") -> list[Problem]:
    return [
        Problem(question=Question(problem_id=f"p{i}", text=f"{text} {i}"), scaffold=Scaffold(answer=Hidden(str(i))))
        for i in range(count)
    ]


class Recorder(LightningModule):
    """Notes the ids of each completed step; makes `updates` optimizer steps in each; may fail in or save after one."""

    def __init__(self, updates: int = 1, fail_in: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.updates = updates
        self.fail_in = fail_in
        self.seen: list[list[str]] = []
        self.save_after: dict[int, str] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: list[Problem], batch_idx: int) -> None:
        assert isinstance(batch, list)
        assert all(isinstance(problem, Problem) for problem in batch)
        if len(self.seen) == self.fail_in:
            raise RuntimeError("interrupted in the middle of a step")
        for _ in range(self.updates):
            self.optimizers().step()
        self.seen.append([problem.id for problem in batch])

    def on_train_batch_end(self, *_: object) -> None:
        if len(self.seen) in self.save_after:
            self.trainer.save_checkpoint(self.save_after[len(self.seen)])


def data(count: int = 5, per_step: int = 2, max_steps: int = 7, seed: int = 3, **changes: object) -> ExpRLDataModule:
    return ExpRLDataModule(problems(count, **changes), prompts_per_step=per_step, max_steps=max_steps, seed=seed)


def trainer(**options: object) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            **options,
        }
    )


def fit(module: Recorder, datamodule: ExpRLDataModule, ckpt_path: str | None = None, **options: object) -> Trainer:
    made = trainer(**options)
    made.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return made


class TestOrder:
    def test_every_epoch_visits_each_problem_once(self):
        flat = [i for step in islice(step_indices(5, 3, seed=0), 10) for i in step]
        assert all(sorted(flat[start : start + 5]) == list(range(5)) for start in range(0, 30, 5))

    @pytest.mark.parametrize(("count", "per_step"), [(5, 3), (5, 4), (5, 5), (7, 2), (4, 3), (1, 1), (100, 36)])
    def test_steps_are_full_and_have_no_problem_twice(self, count, per_step):
        steps = list(islice(step_indices(count, per_step, seed=1), 200))
        assert all(len(step) == len(set(step)) == per_step for step in steps)
        visits = Counter(i for step in steps for i in step)
        assert max(visits.values()) - min(visits.get(i, 0) for i in range(count)) <= 1

    def test_epochs_and_seeds_differ(self):
        assert shuffled(20, 0, 0) != shuffled(20, 0, 1)
        assert shuffled(20, 0, 0) != shuffled(20, 1, 0)
        assert shuffled(20, 0, 1) != shuffled(20, 1, 0)

    def test_order_is_uniform(self):
        # each of 6 orders of 3 problems: 600 expected of 3600, standard deviation 22
        orders = Counter(tuple(shuffled(3, seed, 0)) for seed in range(3600))
        assert len(orders) == 6
        assert all(abs(times - 600) < 110 for times in orders.values())

    def test_order_never_changes_between_versions(self):
        assert shuffled(8, 0, 0) == [0, 3, 7, 4, 1, 5, 2, 6]

    @pytest.mark.parametrize("per_step", [0, 6])
    def test_refuses_more_than_there_are(self, per_step):
        with pytest.raises(ValueError, match=r"per_step must lie in 1\.\.5"):
            next(step_indices(5, per_step, seed=0))


class TestFit:
    def test_trains_on_the_order_across_epochs(self):
        module, datamodule = Recorder(), data()
        fit(module, datamodule)
        expected = [[f"p{i}" for i in step] for step in islice(step_indices(5, 2, seed=3), 7)]
        assert module.seen == expected
        assert datamodule.steps_done == 7

    @pytest.mark.parametrize("updates", [1, 2, 3])
    @pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
    def test_stop_and_resume_is_never_having_stopped(self, tmp_path, stop, updates):
        path = str(tmp_path / "a.ckpt")
        straight = Recorder(updates)
        straight.save_after = {stop: path}  # inside on_train_batch_end, as checkpoint callbacks do
        fit(straight, data())
        resumed, datamodule = Recorder(updates), data()
        made = fit(resumed, datamodule, ckpt_path=path)
        assert straight.seen[stop:] == resumed.seen
        assert datamodule.steps_done == 7
        assert made.global_step == 7 * updates

    def test_resume_of_a_run_stopped_by_optimizer_steps(self, tmp_path):
        straight, first, second = Recorder(), Recorder(), Recorder()
        fit(straight, data())
        fit(first, data(), max_steps=3, max_epochs=-1).save_checkpoint(tmp_path / "a.ckpt")
        fit(second, data(), ckpt_path=str(tmp_path / "a.ckpt"), max_steps=7, max_epochs=-1)
        assert first.seen + second.seen == straight.seen

    def test_resume_twice(self, tmp_path):
        straight, parts = Recorder(), [Recorder(), Recorder(), Recorder()]
        fit(straight, data())
        path = None
        for part, end in zip(parts, (2, 5, None), strict=True):
            following = str(tmp_path / f"{end}.ckpt")
            done = 0 if path is None else 2
            part.save_after = {end - done: following} if end else {}
            fit(part, data(), ckpt_path=path)
            path = following
        assert parts[0].seen[:2] + parts[1].seen[:3] + parts[2].seen == straight.seen

    @pytest.mark.parametrize("fail_in", [0, 3])
    def test_step_that_failed_is_done_again(self, tmp_path, fail_in):
        straight, failing, resumed = Recorder(), Recorder(fail_in=fail_in), Recorder()
        fit(straight, data())
        made, datamodule = trainer(), data()
        with pytest.raises(RuntimeError, match="interrupted"):
            made.fit(failing, datamodule=datamodule)
        assert datamodule.steps_done == fail_in
        made.save_checkpoint(tmp_path / "a.ckpt")
        fit(resumed, data(), ckpt_path=str(tmp_path / "a.ckpt"))
        assert failing.seen + resumed.seen == straight.seen

    def test_finished_run_has_nothing_left(self, tmp_path):
        fit(Recorder(), data()).save_checkpoint(tmp_path / "a.ckpt")
        again = Recorder()
        fit(again, data(), ckpt_path=str(tmp_path / "a.ckpt"))
        assert again.seen == []

    def test_longer_run_from_a_checkpoint_of_a_shorter_one(self, tmp_path):
        straight, short, long = Recorder(), Recorder(), Recorder()
        short.save_after = {2: str(tmp_path / "a.ckpt")}
        fit(straight, data(max_steps=7))
        fit(short, data(max_steps=4))
        fit(long, data(max_steps=7), ckpt_path=str(tmp_path / "a.ckpt"))
        assert long.seen == straight.seen[2:]

    def test_lightning_is_content_with_the_loader(self, tmp_path):
        path = str(tmp_path / "a.ckpt")
        first = Recorder()
        first.save_after = {3: path}
        fit(first, data())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(Recorder(), data(), ckpt_path=path)
        assert not [w for w in caught if "resumable" in str(w.message)]

    def test_a_trainer_that_goes_on_is_told(self):
        with pytest.raises(ConfigError, match=r"all 7 steps are done, but the Trainer goes on: give it max_epochs=1"):
            fit(Recorder(updates=0), data(), max_epochs=-1, max_steps=100)

    def test_state_loaded_without_a_trainer(self):
        first, second = data(), data()
        first.load_state_dict({**first.state_dict(), "step": 4})
        second.load_state_dict(first.state_dict())
        batches = [[p.id for p in batch] for batch in second.train_dataloader()]
        assert second.steps_done == 4
        assert batches == [[f"p{i}" for i in step] for step in islice(step_indices(5, 2, seed=3), 4, 7)]


class TestStepProblems:
    @pytest.mark.parametrize("parts", [(), (Part(name="a", count=6, weight=2), Part(name="b", count=3, weight=1))])
    def test_of_any_step_in_any_order_are_those_of_the_loader(self, parts):
        datamodule = ExpRLDataModule(problems(9), prompts_per_step=4, max_steps=7, seed=3, parts=parts)
        loaded = [[p.id for p in batch] for batch in datamodule.train_dataloader()]
        for step in (0, 1, 1, 2, 6, 3, 0, 5, 4):
            assert [p.id for p in datamodule.step_problems(step)] == loaded[step]

    def test_one_step_ahead_and_back_draws_none_twice(self, monkeypatch):
        begun = []
        monkeypatch.setattr(order, "mixed_indices", lambda *how: (begun.append(how), mixed_indices(*how))[1])
        steps = order.StepOrder([Part(name="all", count=9, weight=1)], 4, seed=3)
        expected = list(islice(step_indices(9, 4, seed=3), 8))
        for step in range(7):
            assert [steps[step + 1], steps[step], steps[step + 1]] == [expected[n] for n in (step + 1, step, step + 1)]
        assert len(begun) == 1
        assert steps[5] == expected[5]
        assert len(begun) == 2

    def test_do_not_move_the_loader(self):
        asked, left = data(), data()
        batches = iter(asked.train_dataloader())
        seen = [next(batches)]
        asked.step_problems(6)
        assert [*seen, *batches] == list(left.train_dataloader())

    def test_changing_what_was_given_changes_nothing(self):
        datamodule = data()
        before = list(datamodule.step_problems(2))
        datamodule.step_problems(2).clear()
        assert datamodule.step_problems(2) == before

    @pytest.mark.parametrize("step", [-1, 7])
    def test_of_no_step_of_the_run(self, step):
        with pytest.raises(IndexError, match=rf"step: must lie in 0\.\.6, but got {step}"):
            data().step_problems(step)


class TestRanks:
    @staticmethod
    def of_rank(rank: int, ranks: int, per_step: int) -> list[list[str]]:
        datamodule = data(count=9, per_step=per_step)
        progress = SimpleNamespace(total=SimpleNamespace(processed=0))
        datamodule.trainer = SimpleNamespace(
            distributed_sampler_kwargs={"num_replicas": ranks, "rank": rank},
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        )
        return [[problem.id for problem in batch] for batch in datamodule.train_dataloader()]

    def test_ranks_share_each_step_contiguously(self):
        alone = [[p.id for p in batch] for batch in data(count=9, per_step=4).train_dataloader()]
        first, second = (self.of_rank(rank, 2, per_step=4) for rank in (0, 1))
        assert all(len(share) == 2 for share in first + second)
        assert [a + b for a, b in zip(first, second, strict=True)] == alone

    def test_ranks_that_cannot_share(self):
        with pytest.raises(ConfigError, match=r"prompts_per_step: 4 prompts cannot be shared by 5 ranks.*at least 5"):
            self.of_rank(0, 5, per_step=4)

    def test_shares_differ_by_one_prompt_at_most(self):
        alone = [[p.id for p in batch] for batch in data(count=9, per_step=4).train_dataloader()]
        shares = [self.of_rank(rank, 3, per_step=4) for rank in range(3)]
        first, *others = ([len(batch) for batch in share] for share in shares)
        assert (first, others) == ([2] * len(alone), [[1] * len(alone)] * 2)
        assert [a + b + c for a, b, c in zip(*shares, strict=True)] == alone


class TestChangedData:
    def test_names_counts_and_first_differing_id(self):
        state = data(count=5).state_dict()
        with pytest.raises(DataError, match=r"5 problems then, 6 now; problem 6, 'p5', is new\. Resume with the same"):
            data(count=6).load_state_dict(state)
        with pytest.raises(DataError, match=r"5 problems then, 4 now; problem 5, 'p4', is gone"):
            data(count=4).load_state_dict(state)
        with pytest.raises(DataError, match=r"answer of 'p0' \(problem 1\) has changed"):
            data(count=5, text="other").load_state_dict(state)

    def test_order_counts(self):
        forward = problems(3)
        assert first_difference(fingerprint(forward), fingerprint(forward)) is None
        difference = first_difference(fingerprint(forward), fingerprint(forward[::-1]))
        assert difference == "3 problems then, 3 now; problem 1 was 'p0' and is 'p2'"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seed": 4}, "seed: the checkpoint was made with 3, but got 4"),
            ({"per_step": 3}, "prompts_per_step: .* 2, but got 3"),
        ],
    )
    def test_another_order_is_refused(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            data(**changes).load_state_dict(data().state_dict())

    def test_refused_through_the_trainer(self, tmp_path):
        fit(Recorder(), data()).save_checkpoint(tmp_path / "a.ckpt")
        with pytest.raises(DataError, match="not those of the checkpoint"):
            fit(Recorder(), data(count=6), ckpt_path=str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("per_step", [0, 6])
def test_step_larger_than_the_data(per_step):
    with pytest.raises(ConfigError, match=rf"prompts_per_step: {per_step}, but there are 5 training problems"):
        data(per_step=per_step)
