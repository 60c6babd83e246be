"""A progress bar for people who wait for samples."""

from torch import Tensor
from tqdm import tqdm

from ..registry.contracts import Prediction, Streams


class SamplingBar:
    """A progress bar over samples, advanced by the time 1 -> 0 that a sampler asks the model for.

    Args:
        total: Number of samples.
        shown: Whether to show it; it stays hidden if standard error is no terminal.
    """

    def __init__(
        self,
        total: int,
        *,
        shown: bool,
    ) -> None:
        layout = "{l_bar}{bar}| {n:.0f}/{total} images [{elapsed}<{remaining}]"
        hidden = None if shown else True
        self.bar = tqdm(total=total, desc="sampling", bar_format=layout, disable=hidden)
        self.done = 0

    def __enter__(self) -> "SamplingBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def watch(self, model: Prediction, count: int) -> Prediction:
        """Wrap the model of a batch of `count` samples so that its calls move the bar."""
        if self.bar.disable:
            return model

        def watched(x: Streams, t: Tensor) -> Streams:
            pred = model(x, t)
            self.move(self.done + count * (1 - float(t)))
            return pred

        return watched

    def finish(self, done: int) -> None:
        """Record that `done` samples are ready."""
        self.done = done
        self.move(done)

    def move(self, position: float) -> None:
        """Move the bar to a number of samples."""
        self.bar.update(position - self.bar.n)
