"""What every run has: hooks, checkpoints, the visualizer, the seed, no compilation."""

hooks = dict(
    samples=dict(type="SampleGrids", interval=10_000),
    policy=dict(type="RoutingPolicy", interval=10_000),
)
checkpoints = dict(interval=10_000, keep=3)
visualizer = dict(type="RunVisualizer")
randomness = dict(seed=0)
compile = False
default_scope = "ahpa"
