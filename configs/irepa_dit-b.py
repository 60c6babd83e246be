"""iREPA on block 4 of DiT-B/2: REPA with a 3 x 3 convolution, spatially normalised targets and weight 1.

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].

Command: python tools/train.py configs/irepa_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dit-b.py", "_base_/irepa.py"]
model = _base_._irepa
optim_wrapper = dict(clip_grad=1.0)
