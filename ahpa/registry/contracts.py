"""The contract of every kind of component: an abstract base class for each registry.

Parts are built in one order, and the builder always passes what is listed here under "Built as":

    tokenizer -> backbone -> Geometry -> flow, flow loss, conditioner, priors -> alignments
    (an alignment builds its router, projector, criteria and schedule in turn)

`own` stands for a component's own options from the config. Everything else follows from other
parts and may not be configured. `ahpa.testing` has a conformance check for each kind.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .values import (
    WHOLE,
    BackboneOutput,
    Clean,
    Condition,
    Encoded,
    Features,
    Geometry,
    LevelSpec,
    Losses,
    Noised,
    Progress,
    Streams,
    Tap,
    TargetView,
    TextCond,
    TokenPlan,
    TokenRoute,
    Tokens,
)

__all__ = [
    "WHOLE",
    "Alignment",
    "Backbone",
    "BackboneOutput",
    "Clean",
    "Condition",
    "Conditioner",
    "Dataset",
    "Encoded",
    "FeatureExtractor",
    "Features",
    "Flow",
    "FlowLoss",
    "Geometry",
    "Guidance",
    "LevelSpec",
    "Losses",
    "Metric",
    "Need",
    "Noised",
    "PairLoss",
    "Path",
    "Prediction",
    "Prior",
    "Progress",
    "Projector",
    "Regulariser",
    "Router",
    "Sampler",
    "Schedule",
    "Streams",
    "Tap",
    "TargetView",
    "TextCond",
    "TextEncoder",
    "TimeEncoding",
    "Timesteps",
    "TokenPlan",
    "TokenRoute",
    "TokenRouting",
    "Tokenizer",
    "Tokens",
]

Prediction = Callable[[Streams, Tensor], Streams]
"""A model as a sampler sees it: (x, 0-d time) -> the prediction for each stream."""


# ---- flow and sampling ----------------------------------------------------------------------


class Path(ABC):
    """An interpolant between data (t = 0) and noise (t = 1). Built as `Path(**own)`.

    Times are [B], 0-d, or already of a shape that broadcasts over the data.

    Attributes:
        predicts: What `mix` returns as the target: "velocity" or "noise".
    """

    predicts: ClassVar[str] = "velocity"

    @abstractmethod
    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mix data and noise. Returns (x_t, target), both shaped as x0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time t, shaped as t."""

    @abstractmethod
    def to_noise(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return E[eps | x_t = x], given a prediction of the target."""

    @abstractmethod
    def to_data(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return E[x0 | x_t = x], given a prediction of the target."""

    @abstractmethod
    def score(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """Return grad log p_t(x), given a prediction of the target; t must be above 0."""


class Timesteps(ABC):
    """A distribution of training times. Built as `Timesteps(**own)`."""

    @abstractmethod
    def sample(self, count: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw times [count], float32 in [0, 1]."""


class Flow(ABC):
    """The noising of a batch: the one place where t and the noise are drawn.

    Built as `Flow(geometry=..., **own)`.

    Attributes:
        path: The interpolant.
        views: How often each image of a batch is noised.
        separate: Whether tokens attend only to tokens of their own group (`Noised.groups`).
        provides: What `to_target` returns and a sampler integrates: "velocity" or "noise".
        default_sampler: Registered name of the sampler that is used when none is named.
    """

    path: Path
    views: int
    separate: bool = False
    provides: ClassVar[str] = "velocity"
    default_sampler: ClassVar[str] = "euler"

    def __init__(self, *, geometry: Geometry) -> None:
        self.geometry = geometry

    @abstractmethod
    def sample(self, streams: Streams, rng: torch.Generator | None) -> Noised:
        """Noise the clean streams {name: [B, ...]}; with views, B is multiplied by their number."""

    def to_target(self, pred: Streams, x: Streams, t: Tensor) -> Streams:
        """Convert the network's output at x_t into what `provides` names. Identity by default."""
        return pred


class FlowLoss(nn.Module, ABC):
    """The loss of the prediction itself. Built as `FlowLoss(geometry=..., flow=..., **own)`."""

    def __init__(self, *, geometry: Geometry, flow: Flow) -> None:
        super().__init__()
        self.geometry = geometry
        self.flow = flow

    @abstractmethod
    def forward(self, view: TargetView) -> Losses:
        """Compare view.out.pred with view.noised.target. The first term is named "flow"."""


class Sampler(ABC):
    """A method of integration from noise (t = 1) to data (t = 0). Built as `Sampler(**own)`.

    Attributes:
        needs: What the prediction must be, "velocity" or "noise"; a flow that provides something
            else is refused.
        adaptive: Whether the sampler chooses its own steps, whatever `steps` is.
    """

    needs: ClassVar[str] = "velocity"
    adaptive: ClassVar[bool] = False

    @abstractmethod
    def sample(
        self,
        model: Prediction,
        x: Streams,
        *,
        steps: int,
        path: Path,
        noise: Callable[[Streams], Streams],
    ) -> Streams:
        """Integrate from x at t = 1.

        Args:
            model: (x, 0-d time) -> the prediction for each stream, guided already.
            x: Standard normal noise for each stream, float32.
            steps: Number of steps; each sampler says how many model calls that is.
            path: The flow's path.
            noise: Draws standard normals shaped as its argument, for stochastic samplers.

        Returns:
            The streams at t = 0.
        """


class Guidance(ABC):
    """Combines conditional and unconditional predictions. Built as `Guidance(**own)`."""

    @abstractmethod
    def guide(
        self, predict: Callable[[Streams, Tensor, Any], Streams], cond: Any, null: Any
    ) -> Prediction:
        """Return a guided model.

        Args:
            predict: (x, t [B], condition) -> prediction.
            cond: The condition of B samples.
            null: The null condition of B samples.
        """


# ---- networks -------------------------------------------------------------------------------


class Tokenizer(nn.Module, ABC):
    """A frozen autoencoder: images [B, 3, H, W] in [0, 1] <-> latents [B, C, H/s, W/s] of about
    unit scale. Built as `Tokenizer(**own)`; `precision` is an option of every tokenizer.

    Attributes, known without loading weights:
        latent_channels: C.
        downsample: s, pixels per latent.
        levels: Encoder levels that one pass can yield, shallow -> deep.
    """

    latent_channels: int
    downsample: int
    levels: Mapping[str, LevelSpec]

    def load(self) -> None:
        """Read the weights if that has not happened yet. Raises UserError if they are missing."""

    @abstractmethod
    def encode(self, images: Tensor, levels: Sequence[str] = (), *, latent: bool = True) -> Encoded:
        """Encode images.

        Args:
            images: [B, 3, H, W] float in [0, 1].
            levels: Names of the encoder levels to return.
            latent: Whether the posterior is needed; without it the pass ends at the deepest level.
        """

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images [B, 3, H, W] in [0, 1]."""


class Backbone(nn.Module, ABC):
    """A diffusion transformer. Built as `Backbone(input_size=..., in_channels=..., **own)`.

    Attributes:
        takes: What it is conditioned on: "classes" or "prompts".
        blocks: The transformer blocks in order; each is compiled and sharded by itself.
        depth: Number of blocks.
        hidden_size: Width D.
        num_heads: Attention heads of a block, or None.
        grid: Token grid (h, w).
        prefix: Number of prefix tokens P.
        streams: Shape of one sample of every stream; what sampling starts from.
        out_channels: Channels predicted for the image; 2C if a variance is predicted too, in which
            case the first C channels are the prediction.
        tap_kinds: Kinds of taps it can give.
        plan_kinds: What it can follow in a `TokenPlan`: "route", "groups", both or nothing.
        num_classes: Number of class labels; label `num_classes` is the null class. None for text.
        text_dim: Width of its text tokens; None if it takes no text.
        pooled_dim: Width of its pooled text; None if it takes none.
    """

    takes: ClassVar[str] = "classes"
    blocks: nn.ModuleList
    depth: int
    hidden_size: int
    num_heads: int | None = None
    grid: tuple[int, int]
    prefix: int = 0
    streams: dict[str, tuple[int, ...]]
    out_channels: int
    tap_kinds: ClassVar[frozenset[str]] = frozenset({"tokens"})
    plan_kinds: ClassVar[frozenset[str]] = frozenset()
    num_classes: int | None = None
    text_dim: int | None = None
    pooled_dim: int | None = None

    @abstractmethod
    def forward(
        self,
        x: Streams,
        t: Tensor,
        cond: Any,
        taps: frozenset[Tap] = frozenset(),
        stop: int | None = None,
        plan: TokenPlan = WHOLE,
    ) -> BackboneOutput:
        """Predict from the noised streams.

        Args:
            x: The noised streams.
            t: Times in [0, 1], [B]; or [B, N], one for each grid token.
            cond: Labels [B] or a `TextCond`.
            taps: What to return beside the prediction.
            stop: Compute no block after this one; `pred` is empty then.
            plan: Which tokens are in a block and attend to each other; the engine asks for nothing
                beyond `plan_kinds`. The prediction is of all tokens in any case.
        """

    @abstractmethod
    def blank_cond(self, count: int, device: torch.device | str) -> Any:
        """Return any valid condition of `count` samples, for counting costs."""


class TokenRouting(ABC):
    """Chooses the tokens that skip a stretch of blocks in training, anew in every step.

    Built as `TokenRouting(geometry=..., **own)`. Sampling never uses it.

    Attributes:
        first_block: First block of the stretch, from 1.
        last_block: Last block of the stretch, before the backbone's last.
    """

    first_block: int
    last_block: int

    def __init__(self, *, geometry: Geometry) -> None:
        self.geometry = geometry

    @abstractmethod
    def draw(self, noised: Noised, rng: torch.Generator | None) -> TokenRoute:
        """Draw the route of a noised batch past the blocks first_block..last_block."""


class TextEncoder(nn.Module, ABC):
    """A frozen encoder of prompts. Built as `TextEncoder(**own)`.

    Attributes, known without loading weights:
        length: Number of tokens T.
        width: Width W of a token.
        pooled_dim: Width P of the pooled vector.
    """

    length: int
    width: int
    pooled_dim: int

    def load(self) -> None:
        """Read the weights if that has not happened yet. Raises UserError if they are missing."""

    @abstractmethod
    def forward(self, prompts: Sequence[str]) -> TextCond:
        """Encode B prompts to tokens [B, T, W] and pooled vectors [B, P], float32."""


class Conditioner(nn.Module, ABC):
    """Turns labels or captions into the backbone's condition, and drops some of them in training.

    Built as `Conditioner(geometry=..., **own)`. It is a frozen part: trained embeddings belong to
    the backbone.

    Attributes:
        takes: What samples are asked for by: "classes" (numbers) or "prompts" (strings).
    """

    takes: ClassVar[str] = "classes"

    def __init__(self, *, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def load(self) -> None:
        """Read the weights of a text encoder, if there is one. Raises UserError if missing."""

    @abstractmethod
    def forward(self, clean: Clean, rng: torch.Generator | None) -> Condition:
        """Return the condition of a training batch; dropout is drawn from `rng`."""

    @abstractmethod
    def null(self, count: int, device: torch.device | str) -> Any:
        """Return the null condition of `count` samples."""

    @abstractmethod
    def all(self) -> list[Any]:
        """List the classes or prompts that are shown when none are asked for."""

    @abstractmethod
    def encode(self, wanted: Sequence[Any], device: torch.device | str) -> Any:
        """Encode the requested classes or prompts. Raises UserError for an unknown one."""

    @abstractmethod
    def example(self, count: int, rng: torch.Generator) -> dict[str, Any]:
        """Return the entries of a synthetic batch of `count` samples that it needs."""


# ---- targets --------------------------------------------------------------------------------


class Prior(nn.Module, ABC):
    """Where a target comes from: named levels of features. Built as `Prior(geometry=..., **own)`.

    A prior is frozen: it lives outside the trained model, in no optimiser and no checkpoint, and
    the engine detaches what it returns.

    Attributes:
        levels: Every level it can give, shallow -> deep; set by the constructor and constant.
        taps: What it wants to read from the student's own forward pass.
    """

    levels: Mapping[str, LevelSpec]
    taps: frozenset[Tap] = frozenset()

    def __init__(self, *, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def load(self) -> None:
        """Read the weights if that has not happened yet. Raises UserError if they are missing."""

    def tokenizer_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """List the tokenizer levels that it needs in `clean.levels` to give these levels."""
        return ()

    @abstractmethod
    def forward(self, view: TargetView, levels: Sequence[str]) -> Features:
        """Return at least the named levels, shallow -> deep.

        Maps are [B, C, h, w] and vectors [B, C], with B as in `view.clean` or, if they are made
        from the noised batch, as in `view.noised`.
        """

    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return the named levels from the clean batch alone, as a diffused stream needs them.

        Raises:
            ValueError: If the prior looks at more than the clean batch.
        """
        raise ValueError(f"{type(self).__name__} needs the noised batch; it cannot be a stream.")

    def probe(self, backbone: Backbone) -> Callable[[], Any] | None:
        """Return a call that runs its network once for one image on the meta device, so that its
        cost can be counted; None if it adds no network to the step."""
        return None


class CleanPrior(Prior):
    """A prior that looks at the clean batch alone: implement `from_clean`."""

    @abstractmethod
    def from_clean(self, clean: Clean, levels: Sequence[str]) -> Features:
        """Return at least the named levels, [B, C, h, w] or [B, C], from the clean batch."""

    def forward(self, view: TargetView, levels: Sequence[str]) -> Features:
        """Return at least the named levels; see `from_clean`."""
        return self.from_clean(view.clean, levels)


class TimeEncoding(nn.Module, ABC):
    """An encoding of t for the learned routers. Built as `TimeEncoding(**own)`.

    Attributes:
        dim: Width of the encoding.
    """

    dim: int

    @abstractmethod
    def forward(self, t: Tensor) -> Tensor:
        """Encode times [B] in [0, 1] to [B, dim], float32."""


class Router(nn.Module, ABC):
    """Weighs the levels of one prior into one target.

    Built as `Router(levels=..., geometry=..., **own)`, where `levels` are the prior's.

    Attributes:
        groups: {group: names of its levels}.
        out_dim: Width of the target.
        used_levels: The levels it reads, in the prior's order, prefix included.
        prefix: The vector levels that become the target's first tokens.
    """

    groups: Mapping[str, tuple[str, ...]]
    out_dim: int
    used_levels: tuple[str, ...]
    prefix: tuple[str, ...] = ()

    def __init__(self, *, levels: Mapping[str, LevelSpec], geometry: Geometry) -> None:
        super().__init__()
        self.levels = levels
        self.geometry = geometry

    @abstractmethod
    def weights(self, t: Tensor, content: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return ({group: alphas [B, L]}, betas [B, G]) for times [B] and grid tokens [B, N, D]."""

    @abstractmethod
    def mix(self, features: Features, intra: Mapping[str, Tensor], inter: Tensor) -> Tensor:
        """Return the target [B, P+N, out_dim] for weights as `weights` returns them."""

    def membership(self) -> dict[str, Tensor]:
        """Return {group: [L], how far each level belongs to it}; empty if groups are fixed."""
        return {}

    def forward(self, features: Features, t: Tensor, content: Tensor | None = None) -> Tensor:
        """Return the target [B, P+N, out_dim] at times [B]."""
        return self.mix(features, *self.weights(t, content))


# ---- losses and alignments ------------------------------------------------------------------


class Projector(nn.Module, ABC):
    """A trained head. Built as `Projector(dim=..., out_dim=..., **own)`."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens [B, P+N, dim] to [B, P+N, out_dim]."""


class PairLoss(nn.Module, ABC):
    """Compares projected tokens with a target. Built as `PairLoss(dim=..., **own)`.

    Attributes:
        items: Names of the returned items; empty for a loss that returns one tensor.
        unweighted: Names of returned items that no weight scales, such as a critic's own objective.
        optimizer_options: If set, its parameters form an optimiser group of their own with these
            options (lr, betas ...), whose gradients are clipped separately.
    """

    items: tuple[str, ...] = ()
    unweighted: tuple[str, ...] = ()
    optimizer_options: dict[str, Any] | None = None

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(
        self, pred: Tensor, target: Tensor, token_weights: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Compare two [B, N, dim] tensors in float32.

        Args:
            pred: Projected tokens.
            target: Target of the same shape.
            token_weights: [B, N] of mean 1, or None for equal weights.

        Returns:
            A 0-d tensor, or a dict of 0-d tensors named by `items`.

        Raises:
            ValueError: If token weights are given and the loss has no per-token value.
        """


class Regulariser(nn.Module, ABC):
    """A loss of the tapped tokens, without a target. Built as `Regulariser(dim=..., **own)`."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """Return a 0-d tensor for tokens [B, P+N, dim] of the batch."""


class Schedule(nn.Module, ABC):
    """The weight of a loss over the run. Built as `Schedule(**own)`.

    State belongs in buffers: it is saved with the model and resumes exactly.
    """

    @abstractmethod
    def forward(self, progress: Progress) -> float | Tensor:
        """Return the weight of this step, a number or a 0-d tensor without gradient."""

    def check_terms(self, names: Sequence[str], where: str) -> None:
        """Refuse, when the model is built, terms that it could not observe. Nothing by default.

        Args:
            names: Names of its alignment's terms, without "<alignment>/".
            where: Place of the schedule in the config; begins the message.

        Raises:
            ConfigError: If a term that it observes is not among them.
        """

    def observe(self, losses: Losses, progress: Progress) -> None:
        """Look at the losses of a training step after they were computed. Nothing by default."""

    def ended(self, progress: Progress) -> bool:
        """Whether the weight is 0 in this step and in all later ones. False by default."""
        return False


class Alignment(nn.Module, ABC):
    """A loss of tapped blocks. Built as `Alignment(name=..., geometry=..., flow=..., priors=...,
    **own)`, where `priors` are the levels of every prior of the model: {prior: {level: spec}}.

    Attributes:
        taps: What it reads from the backbone.
        reads: {prior: names of the levels it reads}; empty for a loss without a prior.
    """

    taps: frozenset[Tap]
    reads: Mapping[str, tuple[str, ...]]

    def __init__(
        self,
        *,
        name: str,
        geometry: Geometry,
        flow: Flow,
        priors: Mapping[str, Mapping[str, LevelSpec]],
    ) -> None:
        super().__init__()
        self.name = name
        self.geometry = geometry
        self.reads = {}

    @abstractmethod
    def forward(
        self, view: TargetView, features: Mapping[str, Features], progress: Progress
    ) -> Losses:
        """Compute the terms, named "<alignment>/<criterion>", and the diagnostics.

        Args:
            view: The step's values; `view.out.taps` holds the requested taps.
            features: {prior: {level: tensor}}, detached and repeated for the views.
            progress: Where the run stands.
        """

    def ended(self, progress: Progress) -> bool:
        """Whether all its terms have the weight 0 in this step and in all later ones: it is then
        left out, and priors that nothing else reads are no longer computed. False by default."""
        return False

    @abstractmethod
    def summary(self) -> str:
        """Describe the alignment in one line for --dry-run, such as "block 3 <- vae (...)"."""

    def probes(self) -> dict[str, Callable[[], Any]]:
        """Return {part: call} that run its heads once for one image on the meta device, so that
        their cost can be counted. Empty by default."""
        return {}


# ---- data -----------------------------------------------------------------------------------


class Dataset(torch.utils.data.Dataset, ABC):
    """Images with labels or captions. Built as `Dataset(resolution=..., **own)`.

    Attributes:
        classes: Class names in the order of the labels; None if there are no labels.
        captioned: Whether items have a caption.
        notes: What a person should know of how the files were read; logged when a run starts.
    """

    classes: tuple[str, ...] | None = None
    captioned: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def check_options(cls, options: Mapping[str, Any], where: str) -> None:
        """Refuse options that are out of their range before any data are looked for.

        Their names and types have been checked. Nothing by default.

        Args:
            options: The constructor's arguments that a config gives.
            where: Place of the data set in the config; begins the message.

        Raises:
            ConfigError: For the first mistake.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return an item for an index or (index, epoch).

        Returns:
            dict(image=uint8 [3, resolution, resolution], index=int) with label=int, caption=str,
            or both. It is a function of the key alone, so that a run resumes exactly.
        """

    def sample_id(self, index: int) -> str:
        """Return a name for a sample, for messages; its number by default."""
        return str(index)

    def fingerprint(self) -> dict[str, Any]:
        """Return what a resumed run must find again; it is part of a checkpoint.

        Returns:
            dict(samples=int, classes=list of names or None, order=SHA-256 of the names of the
            samples in their order). No sample is read.
        """
        order = hashlib.sha256()
        for index in range(len(self)):
            order.update(self.sample_id(index).encode("utf-8", "surrogatepass") + b"\0")
        classes = None if self.classes is None else list(self.classes)
        return {"samples": len(self), "classes": classes, "order": order.hexdigest()}

    def take_problems(self) -> dict[int, str]:
        """Return and forget index -> reason of the files found unreadable since the last call.

        The loader calls it after each batch in the process that read the batch.
        """
        return {}

    def add_problems(self, problems: Mapping[int, str]) -> None:
        """Take note of what `take_problems` returned in another process.

        Raises:
            UserError: If too much of the data set is unreadable.
        """


# ---- evaluation -----------------------------------------------------------------------------


class FeatureExtractor(nn.Module, ABC):
    """A frozen network that turns images into the features that metrics compare.

    Built as `FeatureExtractor(**own)`; no weights are read before `load`.

    Attributes:
        outputs: {output: dimension D} of what it returns.
        takes_prompts: Whether it needs the prompt of each image, as a score of text and image does.
    """

    outputs: Mapping[str, int]
    takes_prompts: bool = False

    @abstractmethod
    def load(self) -> None:
        """Read the weights if that has not happened yet.

        Raises:
            UserError: If they are missing; says what to fetch and where to put it.
        """

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute the features of a batch. A row depends on its own image and prompt alone.

        Args:
            images: uint8 [B, 3, H, W] of any size, as they were saved.
            prompts: The B prompts, if `takes_prompts`.

        Returns:
            {output: float32 [B, D]}.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what decides the features, for the record of a protocol: plain values such as
        the network's name, the SHA-256 of its weights and its input size. Called after `load`."""


class Need(NamedTuple):
    """A statistic that a metric needs of a set of images.

    Attributes:
        extractor: Config of the feature extractor as canonical JSON, so that
            metrics with the same extractor share one pass over the images.
        output: Name of the extractor's output.
        kind: "moments" (count, mean and covariance), "rows" (all features in the order of the
            images) or "splits" (the sums that the Inception Score needs).
    """

    extractor: str
    output: str
    kind: str


class Metric(ABC):
    """Figures that judge a set of samples, mostly against a reference. Built as `Metric(**own)`.

    Attributes:
        figures: {figure: whether a higher one is better} of what `compute` returns.
        needs: What it needs of the samples.
        reference_needs: What it needs of the reference; empty for a metric without one.
    """

    figures: Mapping[str, bool]
    needs: tuple[Need, ...]
    reference_needs: tuple[Need, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return the options that decide the figures, beside the features, as plain values for the
        record of a protocol. None by default."""
        return {}

    @abstractmethod
    def compute(
        self, samples: Mapping[Need, Any], reference: Mapping[Need, Any]
    ) -> dict[str, float]:
        """Compute the figures from statistics (`ahpa.evaluation.statistics`).

        Args:
            samples: The statistic for each of `needs`.
            reference: The statistic for each of `reference_needs`.

        Returns:
            {figure: value}.

        Raises:
            UserError: If there are too few images for the metric.
        """
