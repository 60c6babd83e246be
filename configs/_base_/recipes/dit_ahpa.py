"""AHPA's learning rate 2e-4 and clipping at 2.0 on DiT's recipe [inferred]."""

_base_ = ["dit.py"]
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=2.0)
