"""What runs have learnt and cost, and how good their samples are: policies, targets, gradients,
probes, parameters and GMACs, samples for evaluation, reports."""
