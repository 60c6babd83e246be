"""Conformance checks for every kind of component, for the tests of an outside package.

    from ahpa.testing import check_prior

    def test_my_prior():
        check_prior({"type": "MyPrior", "weights": "..."})

Each takes a config (its type must be registered) or a built component, tries what ahpa relies on
(shapes, dtypes, declared sizes, gradients, determinism, half precision), and raises an
AssertionError that says what is wrong.
"""

from .alignment import check_alignment, check_projector, check_schedule
from .backbones import check_backbone, check_token_routing
from .common import toy_geometry
from .conditioning import check_conditioner, check_text_encoder
from .data import check_dataset
from .evaluation import check_extractor, check_metric
from .flow import check_flow, check_path, check_timesteps
from .losses import check_flow_loss, check_pair_loss, check_regulariser
from .priors import check_prior
from .routers import check_router, check_time_encoding
from .sampling import check_guidance, check_sampler
from .tokenizers import check_tokenizer

__all__ = [
    "check_alignment",
    "check_backbone",
    "check_conditioner",
    "check_dataset",
    "check_extractor",
    "check_flow",
    "check_flow_loss",
    "check_guidance",
    "check_metric",
    "check_pair_loss",
    "check_path",
    "check_prior",
    "check_projector",
    "check_regulariser",
    "check_router",
    "check_sampler",
    "check_schedule",
    "check_text_encoder",
    "check_time_encoding",
    "check_timesteps",
    "check_token_routing",
    "check_tokenizer",
    "toy_geometry",
]
