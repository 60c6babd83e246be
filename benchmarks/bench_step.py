"""The training step by part: forward, alignment branch, backward, optimiser tail; AHPA's overhead with features given."""

import time

import pytest
import torch

from ahpa.engine.optim import AlignmentOptimWrapper

from .conftest import denoiser, given_batch


@pytest.fixture(scope="module")
def model():
    return denoiser()


@pytest.fixture(scope="module")
def batch(model):
    return given_batch(model)


def wrapper_of(model):
    return AlignmentOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))


def test_forward(benchmark, model, batch):
    losses = benchmark(model.loss, batch)
    assert all(value.isfinite() for value in losses.values())


def test_alignment_branch(benchmark, model, batch):
    """Router, target, projector and cosine, forward only, from given features and tokens."""
    step = model.begin(batch)
    step.noisy = model.flow.sample(model.encode(step), step.generator)
    step.out = model.backbone(step.noisy.x, step.noisy.t, batch["label"], taps=model.taps)
    values = benchmark(model.alignments["main"], step)
    assert 0 < float(values["loss_main_cosine"]) < 2


def test_backward(benchmark, model, batch):
    def setup():
        model.zero_grad()
        return (sum(v for k, v in model.loss(batch).items() if "loss" in k),), {}

    benchmark.pedantic(lambda loss: loss.backward(), setup=setup, rounds=5)
    assert all(p.grad is not None for p in model.parameters())


def test_optimiser_tail(benchmark, model, batch):
    """Norm, clip, guard, fused AdamW and EMA."""
    wrapper = wrapper_of(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    wrapper._loss_ok = torch.tensor(True)

    def tail():
        wrapper.step()
        model.update_ema()

    benchmark(tail)
    assert int(wrapper.bad_total) == 0


def plain_tail(model, optimizer, ema, decay=0.9999):
    """What the field's scripts do: clip_grad_norm_, AdamW as it comes, and a loop over the parameters for the EMA."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for (_, average), (_, value) in zip(ema.named_parameters(), model.named_parameters(), strict=True):
            average.mul_(decay).add_(value.data, alpha=1 - decay)


def test_ratio_of_the_tail_to_the_plain_one(benchmark):
    """A B A B interleaved, process time, median; the weights and the EMA must agree."""
    import copy

    ours = denoiser(alignments={}, priors={})
    theirs = copy.deepcopy(ours)
    ema = copy.deepcopy(theirs.backbone)
    wrapper, optimizer = wrapper_of(ours), torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    wrapper._loss_ok = torch.tensor(True)
    times = {"ours": [], "plain": []}
    for round_ in range(9):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(round_)) * 1e-3
            q.grad = p.grad.clone()
        began = time.process_time()
        wrapper.step(), ours.update_ema()
        times["ours"].append(time.process_time() - began)
        began = time.process_time()
        plain_tail(theirs.backbone, optimizer, ema)
        times["plain"].append(time.process_time() - began)
    for a, b in zip(ours.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(ours.ema.parameters(), ema.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    ratios(benchmark, times, "plain", "ours")


def ratios(benchmark, times, slow, fast):
    """Puts medians and their ratio into the report; the benchmark itself runs nothing more."""
    medians = {name: sorted(values[1:])[len(values[1:]) // 2] for name, values in times.items()}
    benchmark.extra_info.update({f"{name}_ms": round(1e3 * value, 3) for name, value in medians.items()})
    benchmark.extra_info["ratio"] = round(medians[slow] / medians[fast], 3)
    print(f"\n{slow} / {fast} = {medians[slow] / medians[fast]:.3f}  {medians}")
    benchmark.pedantic(lambda: None, rounds=1)


def test_ratio_of_ahpa_to_the_bare_step_with_features_given(benchmark):
    """Forward, backward and tail of SiT-S/2 with AHPA's branch (features given) against the same without it."""
    models = {"ahpa": denoiser(), "bare": denoiser(alignments={}, priors={})}
    batches = {name: given_batch(model) for name, model in models.items()}
    wrappers = {name: wrapper_of(model) for name, model in models.items()}
    times = {name: [] for name in models}
    for _ in range(7):
        for name, model in models.items():
            began = time.process_time()
            values = model.train_step(batches[name], optim_wrapper=wrappers[name])
            wrappers[name].zero_grad()
            model.update_ema()
            times[name].append(time.process_time() - began)
            assert values["loss"].isfinite()
    ratios(benchmark, times, "ahpa", "bare")
