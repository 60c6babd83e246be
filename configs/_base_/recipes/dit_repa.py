"""REPA's learning rate 1e-4 and clipping at 1.0 on DiT's recipe [inferred]."""

_base_ = ["dit.py"]
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=1.0)
