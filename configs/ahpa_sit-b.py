"""AHPA on SiT-B/2: block 3 aligned with G3 | G4 of the SD encoder, weighed by an MLP router.

Learning rate 2e-4 and clipping at 2.0 as in the authors' README.

Command: python tools/train.py configs/ahpa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-B/2 ahpa 400000": FID 25.5, sFID 5.78, IS 52.3, Precision 0.59, Recall
    0.63.
Paper: AHPA Table 7, row "AHPA": gsnr_high_noise 11.9, gsnr_low_noise 10.8, gsnr_avg 11.6.
Paper: AHPA Table B.10, row "AHPA, SD-VAE" (zero-shot): gsnr_avg 11.6.
Paper: AHPA Table B.11, row "SD-VAE AHPA": FID 25.5, sFID 5.78.
Paper: AHPA Table D.13, row "(l)": FID 25.5, sFID 5.78.
Paper: AHPA Table D.14, row "G3=4, G4=4": FID 25.5, sFID 5.78, IS 52.3.
Paper: AHPA Table D.15, row "G3uG4 Dynamic Routing": IS 52.3, FID 25.5, Precision 0.63 (elsewhere in
    AHPA Precision 0.59).
Paper: AHPA Table D.16, row "block 3": FID 25.5, IS 52.3.
Paper: AHPA Table D.17, row "Exp 7": FID 25.5.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
