"""SARA: REPA with autocorrelation and adversarial terms; the weights are a re-implementation's, unverified.

On block 8 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/sara_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = ["sit-b.py", "_base_/sara.py"]
model = _base_._sara
optim_wrapper = dict(clip_grad=1.0)
