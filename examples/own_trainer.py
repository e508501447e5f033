"""ExpRL with a Trainer, loggers and callbacks of one's own: process rewards in the miniature world, on a CPU."""

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from exprl import (
    Clipped,
    DelimiterSlicer,
    ExactVerifier,
    ExpRLDataModule,
    ExpRLModule,
    LanguageModel,
    OptimizerConfig,
    Parts,
    ProcessReward,
    PromptBuilder,
    ReferenceStepsJudge,
    Sampling,
    SegmentDelta,
    TransformersEngine,
    UpdateConfig,
)
from exprl.chain.model import ChainModel
from exprl.chain.source import ChainSource


def main(folder: Path, policy: LanguageModel, steps: int) -> None:
    """Train `policy` for `steps` steps; metrics and checkpoints go to `folder`."""
    slicer, judge = DelimiterSlicer(delimiter="\n", position="end"), ReferenceStepsJudge()
    parts = Parts(
        prompts=PromptBuilder(policy.tokenizer),
        engine=TransformersEngine(policy=policy),
        reward=ProcessReward(slicer=slicer, judge=judge),
        advantage=SegmentDelta(),
        objective=Clipped(),
        verifier=ExactVerifier(),
    )
    sampling, optimizer = Sampling(n=8, max_new_tokens=72), OptimizerConfig(lr=1e-3)
    module = ExpRLModule(policy, parts, sampling, optimizer=optimizer, update=UpdateConfig(prompts_per_update=4))
    data = ExpRLDataModule(ChainSource(steps=4).load(), prompts_per_step=8, max_steps=steps)
    loggers = [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")]
    callbacks = [
        ModelCheckpoint(folder, monitor="reward/mean", mode="max", every_n_train_steps=1),
        LearningRateMonitor(),
    ]
    Trainer(max_epochs=1, log_every_n_steps=1, logger=loggers, callbacks=callbacks).fit(module, datamodule=data)
    module.close()


if __name__ == "__main__":
    main(Path("runs/own_trainer"), ChainModel().load(), steps=20)
