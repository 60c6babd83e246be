"""AHPA's recipe, as in the authors' README: learning rate 2e-4, clipping at 2.0."""

_base_ = ["imagenet.py"]
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=2.0)
