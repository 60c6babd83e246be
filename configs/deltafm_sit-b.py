"""Delta-FM (arXiv:2506.05350) on SiT-B/2: contrastive flow matching, weight 0.05.

The authors' code is built on REPA's, so the recipe is REPA's: learning rate 1e-4, clipping at 1.0
[inferred]. Samples with a dropped label take part in the second term; `flow_loss.skip_null=True`
leaves them out.

Command: python tools/train.py configs/deltafm_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2506.05350).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/deltafm.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._deltafm)
