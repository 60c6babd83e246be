"""REPA's recipe, which iREPA, SARA, REG and SRA share: learning rate 1e-4, clipping at 1.0."""

_base_ = ["imagenet.py"]
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=1.0)
