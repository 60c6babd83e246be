"""TREAD (arXiv:2501.04765): a random half of the tokens skips blocks 2 to 8 in training.

The tokens come back unchanged after block 8; the loss is over all of them, and sampling uses all
tokens in all blocks.
"""

_tread = dict(
    token_routing=dict(type="RandomRouting", first_block=2, last_block=8, kept=0.5),
)
