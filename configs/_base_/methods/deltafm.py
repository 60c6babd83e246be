"""Delta-FM (arXiv:2506.05350): predictions are pushed away from the targets of other samples.

Weight 0.05; the other sample is uniform over the micro-batch. Options of the loss: `skip_null`
leaves samples with a dropped label out of the second term, `other_class` draws another class.
"""

_deltafm = dict(flow_loss=dict(type="ContrastiveFlowLoss", weight=0.05))
