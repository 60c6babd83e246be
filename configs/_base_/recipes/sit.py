"""SiT's recipe: learning rate 1e-4, no clipping, no flips (METHODS: SiT paper and code)."""

_base_ = ["imagenet.py"]
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=None)
