"""SARA on block 8 of DiT-B/2: REPA with autocorrelation and adversarial terms; the weights are unverified.

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].

Command: python tools/train.py configs/sara_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dit-b.py", "_base_/sara.py"]
model = _base_._sara
optim_wrapper = dict(clip_grad=1.0)
