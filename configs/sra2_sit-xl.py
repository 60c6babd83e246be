"""SRA 2 on SiT-XL/2: block 8 aligned with the latent itself.

A five-layer MLP, smooth L1; no code exists, the widths are inferred.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra2_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 1M steps without guidance: FID 8.2. Train with --max-iters 1000000.
Paper: the method's own, 4M steps without guidance: FID 6.6. Train with --max-iters 4000000.
Paper: AHPA Table 4, row "+ SRA 2" (800 epochs): FID 1.52, sFID 4.63, IS 316.2, Precision 0.82,
    Recall 0.62. Train with --max-iters 4003200, sample with --sampler sde --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7.
Paper: AHPA Table G.20, row "+ SRA 2" (800 epochs): FID 1.52, sFID 4.63, IS 316.2, Precision 0.82,
    Recall 0.62. Train with --max-iters 4003200, sample with --sampler sde --steps 250 --cfg-scale
    1.8 --cfg-interval 0 0.7.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra2.py", "_base_/recipes/sit_noflip.py"]
_base_.model.merge(_base_._sra2)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.hidden_dim = 2304
