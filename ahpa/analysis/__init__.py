"""What a run has learnt, and what a model costs: the routers' policy, parameters and GMACs."""
