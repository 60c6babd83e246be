"""SRA: the averaged model at a cleaner time as the teacher, smooth L1, weight 0.2 (the paper's recipe).

On block 3 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/sra_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 29.10.
"""

_base_ = ["sit-b.py", "_base_/sra.py"]
model = _base_._sra
model.tokenizer = dict(source="stabilityai/sd-vae-ft-ema")
