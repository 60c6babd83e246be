"""SRA's recipe for DiT: learning rate 1e-4, clipping at 1.0, no flips (METHODS: SRA's DiT code)."""

_base_ = ["dit.py"]
train_dataloader = dict(dataset=dict(flip=False))
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=1.0)
