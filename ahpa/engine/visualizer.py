"""mmengine's Visualizer, with TensorBoard if it is installed."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from mmengine.visualization import Visualizer

from ..registry import VISUALIZERS


@VISUALIZERS.register_module()
class RunVisualizer(Visualizer):
    """Writes scalars to each of its back-ends.

    Args:
        name: Name of this visualizer instance.
        vis_backends: Configs of mmengine back-ends; by default TensorBoard's if it is installed
            (`pip install ahpa[tensorboard]`), else none.
        save_dir: Folder of the back-ends' files.
    """

    def __init__(
        self,
        name: str = "run",
        *,
        vis_backends: Sequence[dict[str, Any]] | None = None,
        save_dir: str | None = None,
    ) -> None:
        backends = list(vis_backends or ())
        if vis_backends is None and importlib.util.find_spec("tensorboard"):
            backends = [{"type": "TensorboardVisBackend"}]
        super().__init__(name=name, vis_backends=backends, save_dir=save_dir)
