"""Dispersive Loss (arXiv:2506.09027): the samples of a batch repel each other in one block.

No target; weight 0.5, tau 0.5, pools of 16 samples, as in the authors' JAX code. The value depends
on the pool: `pool` may also be "rank" or "all_ranks". The config sets the block,
`alignments.main.tap`, a quarter of the depth.
"""

_dispersive = dict(
    alignments=dict(
        main=dict(
            type="Regularisation",
            regulariser=dict(type="DispersiveLoss", tau=0.5, pool=16),
            weight=0.5,
        )
    ),
)
