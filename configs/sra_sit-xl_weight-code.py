"""SRA on SiT-XL/2, 800 epochs, with the weight schedule of its code.

0.2 up to epoch 149, then 2 * 0.1^((epoch - 149) / 1000 + 1). An epoch is 5004.6 steps of batch 256;
the code changes the weight from epoch to epoch, this from step to step. In the 80 epochs of a run
of 400K steps it stays 0.2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_sit-xl_weight-code.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (4M steps of batch 256).
Paper: the method's own, 400 epochs: FID 1.85. Train with --max-iters 2001600, sample with --sampler
    sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
Paper: the method's own, 800 epochs: FID 1.58. Sample with --sampler sde --steps 250 --cfg-scale 1.8
    --cfg-interval 0 0.7.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 8
_base_.model.priors.ema.block = 20
_base_.model.alignments.main.projector.hidden_dim = 2304
_epoch = 5004.6
_base_.model.alignments.main.weight = dict(
    type="DecadeDecay",
    value=0.2,
    begin=149 * _epoch,
    decade=1000 * _epoch,
)
_base_.train_cfg.max_iters = 4_000_000
