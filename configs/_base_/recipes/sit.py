"""SiT's recipe: learning rate 1e-4, no clipping, horizontal flips (METHODS: SiT paper and code)."""

_base_ = ["imagenet.py"]
train_dataloader = dict(dataset=dict(flip=True))
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=None)
