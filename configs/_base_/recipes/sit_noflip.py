"""SiT's learning rate 1e-4 without clipping, and without flips, as for latents that are cached."""

_base_ = ["sit.py"]
train_dataloader = dict(dataset=dict(flip=False))
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=None)
