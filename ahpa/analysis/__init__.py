"""What runs have learnt and cost: the routers' policy, targets, gradients, probes, parameters and
GMACs."""
