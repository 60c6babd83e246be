"""Vanilla DiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/dit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: DiT (arXiv:2212.09748), 400K steps without guidance, DDPM of 250 steps: FID 19.5.
Paper: DiT (arXiv:2212.09748), 7M steps without guidance, DDPM of 250 steps: FID 9.62. Train with
    --max-iters 7000000.
Paper: AHPA Table 4, row "DiT-XL/2" (1400 epochs): FID 2.27, sFID 4.6, IS 278.2, Precision 0.83,
    Recall 0.57. Train with --max-iters 7005600, sample with --sampler ddpm --steps 250 --cfg-scale
    1.5 --cfg-channels 3.
Paper: AHPA Table G.20, row "DiT-XL/2" (1400 epochs): FID 2.27, sFID 4.6, IS 278.2, Precision 0.83,
    Recall 0.57. Train with --max-iters 7005600, sample with --sampler ddpm --steps 250 --cfg-scale
    1.5 --cfg-channels 3.
"""

_base_ = ["_base_/backbones/dit-xl.py", "_base_/recipes/dit.py"]
