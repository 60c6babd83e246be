"""What every registered transformer must do: a new backbone is tested here without new code."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.backbones import SMALL, moved, small_inputs
from torch import nn

from ahpa.backbones.layers import Attention, Heads, time_sinusoid
from ahpa.backbones.mmdit import MMDiT
from ahpa.backbones.sit import SiT
from ahpa.registry import BACKBONES
from ahpa.registry.contracts import BackboneOutput, Tap
from ahpa.testing.backbones import check_backbone

QK = dict(qk_norm=True)
KINDS = ("tokens", "attention", "keys", "values")
PREFIXED = [name for name in SMALL if name.startswith("ClassStream")]
UNPREFIXED = [name for name in SMALL if name not in PREFIXED]


def test_none_is_left_out():
    BACKBONES.import_from_location()
    own = {
        name for name, part in BACKBONES.module_dict.items() if part.__module__.startswith("ahpa.")
    }
    assert own == set(SMALL)


# ---- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, QK, dict(patch_size=4)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_contract(name, changes):
    check_backbone({**SMALL[name], **changes})


@pytest.mark.parametrize("name", SMALL)
def test_declarations(name):
    model = moved(name)
    text = "MMDiT" in name
    assert model.takes == ("prompts" if text else "classes")
    assert model.num_classes == (None if text else 10)
    assert model.text_dim == (20 if text else None) and model.pooled_dim is None
    assert (model.depth, model.hidden_size, model.num_heads) == (3, 48, 4)
    assert model.grid == (4, 4) and model.prefix == (1 if name in PREFIXED else 0)
    assert model.tap_kinds == set(KINDS)
    prefix = "joint_blocks" if text else "blocks"
    assert [id(block) for block in model.blocks] == [id(b) for b in model.get_submodule(prefix)]


class TooFewBlocks(SiT):
    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = self.blocks[:-1]


class LateStop(SiT):
    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        return super().forward(x, t, cond, taps)


class TapsChangeIt(SiT):
    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        out = super().forward(x, t, cond, taps, stop)
        return out._replace(pred={k: v + len(taps) for k, v in out.pred.items()})


class TapsEverything(SiT):
    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        return super().forward(x, t, cond, taps | {Tap(1)}, stop)


class FlatHeads(SiT):
    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        out = super().forward(x, t, cond, taps, stop)
        flat = {k: v.mean(1) if k.kind == "keys" else v for k, v in out.taps.items()}
        return out._replace(taps=flat)


class AcceptsAnyTap(SiT):
    def _check_taps(self, taps, stop):
        pass

    def walk(self, x, t, cond, keep, lanes):
        return super().walk(x, t, cond, frozenset(range(9)), lanes)


class HalfOutput(SiT):
    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        out = super().forward(x, t, cond, taps, stop)
        return out._replace(pred={k: v.half() for k, v in out.pred.items()})


class IgnoresTokenTimes(SiT):
    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        return super().forward(x, t if t.ndim == 1 else 0 * t, cond, taps, stop)


class UnusedWeight(SiT):
    def __init__(self, **options):
        super().__init__(**options)
        self.unused = nn.Linear(2, 2)


class NoClasses(SiT):
    def __init__(self, **options):
        super().__init__(**options)
        self.num_classes = None


@pytest.mark.parametrize(
    "broken, message",
    [
        (TooFewBlocks, "blocks: 1 of them"),
        (LateStop, "must be empty"),
        (TapsChangeIt, "taps change the prediction"),
        (TapsEverything, "nobody asked for"),
        (FlatHeads, "must be"),
        (AcceptsAnyTap, "must raise ValueError"),
        (HalfOutput, "must be float32"),
        (IgnoresTokenTimes, "equal times per token differ"),
        (UnusedWeight, "no gradient reaches"),
        (NoClasses, "must set num_classes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_check_finds(broken, message):
    options = dict(depth=2, hidden_size=16, num_heads=2, num_classes=10)
    with pytest.raises(AssertionError, match=message):
        check_backbone(broken(input_size=8, in_channels=4, **options))


# ---- gradient checkpointing, autocast, stopping, compiling ---------------------------------------


def summed(out: BackboneOutput):
    """A number that every output and every tap take part in."""
    parts = [*out.pred.values(), *(tap.float() for tap in out.taps.values())]
    return sum(part.square().mean() for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_nothing(name, kind):
    grads = []
    for flag in (False, True):
        model = moved(name, gradient_checkpointing=flag).train()
        summed(model(*small_inputs(model), taps=frozenset({Tap(2, kind)}))).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_autocast_is_close_finite_and_trains(name, dtype):
    model = moved(name, gradient_checkpointing=True, **QK).train()
    given = small_inputs(model)
    full = {key: value.detach() for key, value in model(*given).pred.items()}
    with torch.autocast("cpu", dtype=dtype):
        out = model(*given, taps=frozenset(Tap(2, kind) for kind in KINDS))
    for key, value in out.pred.items():
        assert value.dtype == torch.float32
        assert float((value.detach() - full[key]).norm() / full[key].norm()) < 0.05
    assert all(tap.isfinite().all() for tap in out.taps.values())
    summed(out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_a_teacher_stops_at_its_block(name):
    model = moved(name)
    whole = model(*small_inputs(model), taps=frozenset({Tap(2)}))
    with torch.no_grad():
        for p in model.blocks[2].parameters():
            p.fill_(torch.nan)
        stopped = model(*small_inputs(model), taps=frozenset({Tap(2)}), stop=2)
    assert not stopped.pred and torch.equal(stopped.taps[Tap(2)], whole.taps[Tap(2)])
    assert torch.equal(stopped.tokens(2).tokens, whole.tokens(2).tokens)


@pytest.mark.parametrize(
    "tap, message",
    [
        (Tap(4), r"4 is not a block.*1\.\.3"),
        (Tap(0), r"0 is not a block.*1\.\.3"),
        (Tap(1, "atention"), "did you mean 'attention'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SMALL)
def test_a_tap_that_does_not_exist(name, tap, message):
    model = moved(name)
    with pytest.raises(ValueError, match=message):
        model(*small_inputs(model), taps=frozenset({tap}))


def test_a_stop_that_does_not_exist():
    model = moved("SiT")
    with pytest.raises(ValueError, match=r"stop: 4 is not a block.*1\.\.3"):
        model(*small_inputs(model), stop=4)


@pytest.mark.parametrize("shape", [(2, 4, 4, 16), (2, 4, 16, 16), (2, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_a_latent_of_another_shape(name, shape):
    """4 x 16 has as many tokens as 8 x 8: it would pass through, with another grid's positions."""
    model = moved(name)
    x, t, cond = small_inputs(model)
    with pytest.raises(ValueError, match=r"\[B, 4, 8, 8\], got \[2, "):
        model({**x, "image": torch.zeros(shape)}, t, cond)


@pytest.mark.parametrize("name", SMALL)
def test_a_condition_of_another_kind(name):
    model = moved(name)
    x, t, _ = small_inputs(model)
    with pytest.raises(ValueError, match="the condition must be"):
        model(x, t, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_blocks_compile_without_breaks(name):
    torch.compiler.reset()  # graphs of other backbones count towards the limit of recompilations
    model = moved(name)
    taps = frozenset({Tap(2), Tap(2, "attention")})
    eager = model(*small_inputs(model), taps=taps)
    for block in model.blocks:
        block.compile(dynamic=False, fullgraph=True)
    plain = model(*small_inputs(model))
    torch.testing.assert_close(plain.pred["image"], eager.pred["image"], rtol=1e-4, atol=1e-5)
    tapped = model(*small_inputs(model), taps=taps)
    for tap in taps:
        torch.testing.assert_close(tapped.taps[tap], eager.taps[tap], rtol=1e-4, atol=1e-5)


# ---- taps of the attention -----------------------------------------------------------------------


def captured(run):
    """Run a call; return ((q, k, v), output) of every attention kernel that it called, in order."""
    calls, kernel = [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None):
        assert attn_mask is None
        calls.append(((q, k, v), kernel(q, k, v)))
        return calls[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        run()
    return calls


@pytest.mark.parametrize("changes", [{}, QK], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_logits_keys_and_values_are_those_of_the_attention(name, changes):
    """logits = q k^T / sqrt(D/H), and softmax(logits) v is what the fused kernel gave.

    MMDiT's kernel sees text tokens too: the image's are the last rows and columns, and the taps
    are those of the image alone.
    """
    model = moved(name, **changes)
    given = small_inputs(model)
    taps = frozenset(Tap(block, kind) for block in (1, 2, 3) for kind in KINDS)
    found = {}
    calls = captured(lambda: found.update(model(*given, taps=taps).taps))
    count = 16 + model.prefix
    for number, ((q, k, v), attended) in enumerate(calls, start=1):
        own_q, own_k, own_v = (part[:, :, -count:] for part in (q, k, v))
        keys, values = found[Tap(number, "keys")], found[Tap(number, "values")]
        assert keys.shape == values.shape == (2, 4, count, 12)
        assert torch.equal(keys, own_k) and torch.equal(values, own_v)
        logits = found[Tap(number, "attention")]
        wanted = torch.einsum("bhid,bhjd->bhij", own_q, own_k) / math.sqrt(12)
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
        if k.shape[2] == count:
            mixed = logits.softmax(-1) @ values
        else:  # the softmax runs over the text's keys as well
            text = torch.einsum("bhid,bhjd->bhij", own_q, k[:, :, :-count]) / math.sqrt(12)
            mixed = torch.cat([text, logits], -1).softmax(-1) @ v
        torch.testing.assert_close(mixed, attended[:, :, -count:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_taps_leave_prediction_and_gradients_unchanged_to_the_bit(name, train):
    """Blocks call the same kernel with the same inputs whether tapped or not."""
    model = moved(name).train(train)
    given = small_inputs(model)
    taps = frozenset(Tap(block, kind) for block in (1, 3) for kind in KINDS)
    grads = []
    for asked in (frozenset(), taps):
        model.zero_grad()
        out = model(*given, taps=asked)
        sum(part.square().mean() for part in out.pred.values()).backward()
        grads.append((out.pred, {n: p.grad.clone() for n, p in model.named_parameters()}))
    (bare, bare_grads), (tapped, tapped_grads) = grads
    assert all(torch.equal(bare[key], tapped[key]) for key in bare)
    assert all(torch.equal(bare_grads[key], tapped_grads[key]) for key in bare_grads)


def test_heads_are_kept_in_tapped_blocks_alone():
    model, kept = moved("SiT"), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: kept.append(out[1] is not None))
    model(*small_inputs(model), taps=frozenset({Tap(1), Tap(2, "keys"), Tap(3)}))
    assert kept == [False, True, False]


def test_the_gradient_of_the_logits_reaches_queries_and_keys():
    model = moved("SiT")
    out = model(*small_inputs(model), taps=frozenset({Tap(2, "attention")}))
    out.taps[Tap(2, "attention")].square().mean().backward()
    q, k, v = model.blocks[1].attn.qkv.weight.grad.chunk(3)
    assert q.abs().max() > 0 and k.abs().max() > 0 and v.abs().max() == 0
    assert model.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert model.blocks[2].attn.qkv.weight.grad is None


def test_logits_number_by_number():
    """Two queries and keys of width 4: q k^T / 2."""
    q = torch.tensor([[[[1.0, 2, 3, 4], [0, 1, 0, 1]]]])
    k = torch.tensor([[[[1.0, 0, 0, 0], [1, 1, 1, 1]]]])
    assert Heads(q, k, k).logits().tolist() == [[[[0.5, 5.0], [0.0, 1.0]]]]


def test_attention_is_the_softmax_of_its_logits():
    torch.manual_seed(0)
    layer, x = Attention(12, 3, qk_norm=True), torch.randn(2, 5, 12)
    out, heads = layer(x, keep_heads=True)
    mixed = heads.logits().softmax(-1) @ heads.v  # [B, H, N, D/H]
    wanted = layer.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    bare, none = layer(x)
    assert none is None and torch.equal(bare, out)


# ---- one time per token --------------------------------------------------------------------------


def test_the_sinusoid_of_times_per_token():
    t = torch.rand(3, 5)
    wave = time_sinusoid(t)
    assert wave.shape == (3, 5, 256)
    for column in range(5):
        assert torch.equal(wave[:, column], time_sinusoid(t[:, column]))


@pytest.mark.parametrize(
    "name, changes",
    [
        *[(name, {}) for name in UNPREFIXED],
        *[(name, dict(reversed_time=True)) for name in ("SiT", "DiT", "DDT", "DDTDiT")],
        *[(name, dict(pooled_dim=7)) for name in ("MMDiT", "DDTMMDiT")],
    ],
    ids=str,
)
def test_equal_times_per_token_are_one_time_per_sample(name, changes):
    model = moved(name, **changes)
    x, t, cond = small_inputs(model)
    if "pooled_dim" in changes:
        cond = cond._replace(pooled=torch.randn(2, 7))
    taps = frozenset(Tap(block, kind) for block in (1, 2, 3) for kind in KINDS)
    one = model(x, t, cond, taps=taps)
    each = model(x, t[:, None].repeat(1, 16), cond, taps=taps)
    torch.testing.assert_close(each.pred["image"], one.pred["image"], rtol=1e-5, atol=1e-6)
    for tap in taps:
        torch.testing.assert_close(each.taps[tap], one.taps[tap], rtol=1e-5, atol=1e-6)


def test_a_time_per_token_modulates_its_token():
    """The first block of SiT written out, with c[b, n] = time(t[b, n]) + label[b]."""
    model = moved("SiT")
    x, _, label = small_inputs(model)
    t = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    found = model(x, t, label, taps=frozenset({Tap(1)}), stop=1).tokens(1).tokens
    h, block = model.embed(x), model.blocks[0]
    c = torch.stack([model.t_embedder(t[:, n]) + model.y_embedder(label) for n in range(16)], 1)
    mods = block.adaLN_modulation(c).split(48, -1)  # each [B, N, D]
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = mods
    h = h + gate * block.attn(F.layer_norm(h, (48,), eps=1e-6) * (1 + scale) + shift)[0]
    inner = F.layer_norm(h, (48,), eps=1e-6) * (1 + scale_mlp) + shift_mlp
    h = h + gate_mlp * block.mlp(inner)
    torch.testing.assert_close(found, h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", UNPREFIXED)
def test_another_time_of_one_token_moves_that_token_most(name):
    """Other tokens change through the attention alone; no other sample changes."""
    model = moved(name)
    x, t, cond = small_inputs(model)
    each = t[:, None].repeat(1, 16)
    moved_t = each.clone()
    moved_t[0, 5] = 0.9
    first = frozenset({Tap(1)})
    before, after = (model(x, times, cond, taps=first, stop=1) for times in (each, moved_t))
    change = (after.tokens(1).tokens - before.tokens(1).tokens).norm(dim=-1)  # [B, N]
    assert change[0].argmax() == 5 and (change[1] == 0).all()


def test_the_text_half_gets_the_mean_time():
    model = moved("MMDiT", pooled_dim=7)
    x, _, cond = small_inputs(model)
    cond = cond._replace(pooled=torch.randn(2, 7))
    t = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    text, time, text_c, image_c = model.conditions(t, cond)
    pooled = model.y_embedder(cond.pooled)
    assert text.shape == (2, 5, 48) and time.shape == image_c.shape == (2, 16, 48)
    torch.testing.assert_close(text_c, model.t_embedder(t.sum(1) / 16) + pooled)
    torch.testing.assert_close(image_c[:, 3], model.t_embedder(t[:, 3]) + pooled)


@pytest.mark.parametrize("name", ["DDT", "DDTDiT"])
def test_the_decoupled_condition_of_times_per_token(name):
    """s[b, n] = SiLU(time(t[b, n]) + h[b, n]), with h the encoder's tokens."""
    model = moved(name)
    x, _, label = small_inputs(model)
    t = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    s = model(x, t, label, taps=frozenset({Tap(1)}), stop=1).tokens(1).tokens
    time = model.t_embedder(model.time_input(t))
    h, _ = model.blocks[0](model.embed(x), time + model.y_embedder(label)[:, None])
    torch.testing.assert_close(s, F.silu(time + h))


@pytest.mark.parametrize("name", PREFIXED)
def test_a_class_stream_refuses_a_time_per_token(name):
    model = moved(name)
    x, _, cond = small_inputs(model)
    with pytest.raises(ValueError, match=r"t must be \[B\].*prefix"):
        model(x, torch.rand(2, 16), cond)


@pytest.mark.parametrize("shape", [(), (3,), (2, 15), (2, 16, 1), (1, 16)], ids=str)
@pytest.mark.parametrize("kind", [SiT, MMDiT])
def test_times_of_another_shape(kind, shape):
    model = moved(kind.__name__)
    x, _, cond = small_inputs(model)
    with pytest.raises(ValueError, match=r"t must be \[2\], or \[2, 16\]"):
        model(x, torch.zeros(shape), cond)


def test_a_tap_behind_the_stop_is_refused():
    model = moved("SiT")
    taps = frozenset({Tap(2)})
    with pytest.raises(ValueError, match="block 2 lies behind stop=1"):
        model(*small_inputs(model), taps=taps, stop=1)
