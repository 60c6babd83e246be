"""mmengine's Visualizer with TensorBoard when it is installed; other back-ends as its own config names them."""

import importlib.util

from mmengine.visualization import Visualizer

from ..registry import VISUALIZERS


@VISUALIZERS.register_module()
class RunVisualizer(Visualizer):
    """Scalars to TensorBoard if that is installed (`pip install ahpa[tensorboard]`), and to each of `vis_backends`."""

    def __init__(self, name: str = "run", *, vis_backends=None, save_dir: str | None = None):
        backends = list(vis_backends or ())
        if vis_backends is None and importlib.util.find_spec("tensorboard"):
            backends = [dict(type="TensorboardVisBackend")]
        super().__init__(name=name, vis_backends=backends, save_dir=save_dir)
