"""The public names, each with the module it lives in: read by type checkers, and by `__init__.py` at run time."""

from .advantages import (
    Advantage as Advantage,
    GroupAdvantage as GroupAdvantage,
    GroupwiseAdvantage as GroupwiseAdvantage,
    Scores as Scores,
    SegmentBatch as SegmentBatch,
    SegmentDelta as SegmentDelta,
    SegmentDeltaFinal as SegmentDeltaFinal,
    SegmentEnd as SegmentEnd,
    SegmentGroup as SegmentGroup,
    SegmentReturn as SegmentReturn,
    SegmentSum as SegmentSum,
)
from .component import (
    Choice as Choice,
    Component as Component,
    choose as choose,
    choose_each as choose_each,
    given as given,
    option as option,
    required_choice as required_choice,
    wrapped as wrapped,
)
from .config.ranges import (
    NonEmpty as NonEmpty,
    NonNegativeInt as NonNegativeInt,
    PositiveInt as PositiveInt,
    Range as Range,
    Share as Share,
)
from .corrections import (
    Correction as Correction,
    IcePop as IcePop,
    NoCorrection as NoCorrection,
    SequenceMask as SequenceMask,
    TruncatedImportance as TruncatedImportance,
)
from .data.base import ProblemSource as ProblemSource
from .data.datamodule import ExpRLDataModule as ExpRLDataModule
from .engines import (
    Engine as Engine,
    Sampling as Sampling,
    TransformersEngine as TransformersEngine,
    VLLMEngine as VLLMEngine,
)
from .errors import ExprlError as ExprlError
from .evaluation.pass_at_k import pass_at_k as pass_at_k
from .evaluation.pass_at_k_metric import PassAtK as PassAtK
from .execution import (
    Bubblewrap as Bubblewrap,
    ExecutionVerifier as ExecutionVerifier,
    NoSandbox as NoSandbox,
    Sandbox as Sandbox,
)
from .experiment import (
    Experiment as Experiment,
    OptimizerConfig as OptimizerConfig,
    UpdateConfig as UpdateConfig,
    load_experiment as load_experiment,
)
from .judges import (
    Judge as Judge,
    LLMJudge as LLMJudge,
    NoReferenceJudge as NoReferenceJudge,
    ReferenceStepsJudge as ReferenceStepsJudge,
    RubricJudge as RubricJudge,
    SameModelJudge as SameModelJudge,
    SmallerModelJudge as SmallerModelJudge,
    WrappingJudge as WrappingJudge,
    WrongReferenceJudge as WrongReferenceJudge,
)
from .judges.backends import (
    ServerBackend as ServerBackend,
    TransformersBackend as TransformersBackend,
    VLLMBackend as VLLMBackend,
)
from .kernels import (
    TokenLoss as TokenLoss,
    kl_estimate as kl_estimate,
    linear_logprob as linear_logprob,
    logprob_entropy as logprob_entropy,
    policy_token_loss as policy_token_loss,
)
from .models import LanguageModel as LanguageModel, ModelProvider as ModelProvider, PretrainedModel as PretrainedModel
from .objectives import (
    CISPO as CISPO,
    DPPO as DPPO,
    GSPO as GSPO,
    Clipped as Clipped,
    Objective as Objective,
    PolicyTokens as PolicyTokens,
    Reinforce as Reinforce,
    Surrogate as Surrogate,
)
from .registry import (
    ADVANTAGES as ADVANTAGES,
    BACKENDS as BACKENDS,
    BEHAVIOURS as BEHAVIOURS,
    CORRECTIONS as CORRECTIONS,
    ENGINES as ENGINES,
    JUDGES as JUDGES,
    METHODS as METHODS,
    MODELS as MODELS,
    OBJECTIVES as OBJECTIVES,
    PERTURBATIONS as PERTURBATIONS,
    PROMPTS as PROMPTS,
    REWARDS as REWARDS,
    SANDBOXES as SANDBOXES,
    SLICERS as SLICERS,
    SOURCES as SOURCES,
    VERIFIERS as VERIFIERS,
)
from .resources import Resources as Resources
from .rewards import (
    ByDomainReward as ByDomainReward,
    ExecutionReward as ExecutionReward,
    JudgedReward as JudgedReward,
    OutcomeReward as OutcomeReward,
    ProcessReward as ProcessReward,
    Reward as Reward,
    SparseReward as SparseReward,
)
from .rollouts import (
    Label as Label,
    RolloutStore as RolloutStore,
    StoredGroup as StoredGroup,
    load_rollouts as load_rollouts,
)
from .slicers import (
    ChangePointSlicer as ChangePointSlicer,
    DelimiterSlicer as DelimiterSlicer,
    ScoredSlicer as ScoredSlicer,
    Slicer as Slicer,
    TokenWindowSlicer as TokenWindowSlicer,
)
from .terminal.progress import OnProgress as OnProgress, no_progress as no_progress
from .text.prompts import (
    ByDomainPrompt as ByDomainPrompt,
    PromptBuilder as PromptBuilder,
    Prompting as Prompting,
    PromptTemplate as PromptTemplate,
)
from .text.tokenization import decode_with_ends as decode_with_ends
from .training.module import ExpRLModule as ExpRLModule, Parts as Parts
from .types import (
    Advantages as Advantages,
    Curve as Curve,
    Hidden as Hidden,
    Judgement as Judgement,
    JudgeRequest as JudgeRequest,
    Problem as Problem,
    Prompt as Prompt,
    Question as Question,
    Rollout as Rollout,
    RolloutGroup as RolloutGroup,
    RolloutReward as RolloutReward,
    Scaffold as Scaffold,
    ScoredGroup as ScoredGroup,
    Scorer as Scorer,
    Segment as Segment,
    SegmentRewards as SegmentRewards,
)
from .verifiers import (
    ByDomainVerifier as ByDomainVerifier,
    ChoiceVerifier as ChoiceVerifier,
    ExactVerifier as ExactVerifier,
    MathVerifier as MathVerifier,
    QuantityVerifier as QuantityVerifier,
    Verifier as Verifier,
)

__version__: str
