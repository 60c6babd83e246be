"""DiT's recipe: learning rate 1e-4, no clipping, horizontal flips (METHODS: DiT's code).

Sample grids are guided on the first 3 latent channels only, as by DiT's code.
"""

_base_ = ["imagenet.py"]
train_dataloader = dict(dataset=dict(flip=True))
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=None)
hooks = dict(samples=dict(cfg_channels=3))
