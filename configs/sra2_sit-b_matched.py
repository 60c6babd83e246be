"""SRA 2 on SiT-B/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: python tools/train.py configs/sra2_sit-b_matched.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-B/2 sra2 400000": FID 31.3, sFID 6.42, IS 47.0, Precision 0.55, Recall
    0.63.
Paper: AHPA Table 7, row "SRA 2 (Latent)": gsnr_high_noise 12.0, gsnr_low_noise 3.1, gsnr_avg 7.2.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/sra2.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._sra2)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 2
_base_.model.alignments.main.projector.hidden_dim = 1536
