"""iREPA: REPA with a 3 x 3 convolution, spatially normalised targets (gamma 0.6) and weight 1.

On block 4 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/irepa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 21.40 (REPA there 22.75).
"""

_base_ = ["sit-b.py", "_base_/irepa.py"]
model = _base_._irepa
optim_wrapper = dict(clip_grad=1.0)
