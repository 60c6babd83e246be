"""SRA on SiT-XL/2: block 8 aligned with block 20 of the averaged model at a cleaner time.

A two-layer MLP, smooth L1, weight 0.2, clipping at 1.0: the paper's recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400 epochs: FID 1.85, sFID 4.50, IS 297.2. Train with --max-iters 2001600,
    sample with --sampler sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
Paper: AHPA Table 4, row "+ SRA" (800 epochs): FID 1.58, sFID 4.65, IS 305.7, Precision 0.8, Recall
    0.63 (in its own paper IS 311.4, Recall 0.63). Train with --max-iters 4003200, sample with
    --sampler sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
Paper: AHPA Table G.20, row "+ SRA" (800 epochs): FID 1.58, sFID 4.65, IS 305.7, Precision 0.8,
    Recall 0.63 (in its own paper IS 311.4, Recall 0.63). Train with --max-iters 4003200, sample
    with --sampler sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 8
_base_.model.priors.ema.block = 20
_base_.model.alignments.main.projector.hidden_dim = 2304
