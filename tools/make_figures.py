"""Draw the figures of the docs as SVG: python tools/make_figures.py [--check].

One figure for each method, all on the same plan, and one for a training step. --check writes
nothing and exits with 1 if a figure is out of date.
"""

# ruff: noqa: RUF001  (labels have mathematical signs)

import argparse
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FILLS = {
    "data": ("#f3f4f6", "#6b7280"),
    "frozen": ("#e0ecff", "#2f6fd0"),
    "trained": ("#fff0d9", "#c77700"),
    "loss": ("#fde4ea", "#c2255c"),
}
LEGEND = {"data": "values", "frozen": "frozen", "trained": "trained", "loss": "losses"}
WIDTH = 1000


class Box(NamedTuple):
    """A box: its corner, size, lines of text and kind (a key of `FILLS`)."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]
    kind: str

    def at(self, side: str, share: float = 0.5) -> tuple[float, float]:
        """Return the point on a side ("left", "right", "top", "bottom"), at a share of it."""
        if side in ("left", "right"):
            x = self.x if side == "left" else self.x + self.width
            return x, self.y + share * self.height
        y = self.y if side == "top" else self.y + self.height
        return self.x + share * self.width, y

    def svg(self) -> str:
        """Return the box as SVG; its first line is bold."""
        fill, stroke = FILLS[self.kind]
        dash = ' stroke-dasharray="5 3"' if self.kind == "frozen" else ""
        parts = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="7" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"{dash}/>'
        ]
        middle = self.x + self.width / 2
        top = self.y + self.height / 2 - 8 * (len(self.lines) - 1) + 4.5
        for number, line in enumerate(self.lines):
            weight = "600" if number == 0 else "400"
            size = 13.5 if number == 0 else 12
            parts.append(text(middle, top + 16 * number, line, size=size, weight=weight))
        return "\n".join(parts)


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float = 12,
    weight: str = "400",
    anchor: str = "middle",
    fill: str = "#1f2937",
) -> str:
    """Return a line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{fill}">{escape(content)}</text>'
    )


def arrow(*points: tuple[float, float], label: str = "", dashed: bool = False) -> str:
    """Return an arrow through points, with a label beside the middle of its longest part."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    line = (
        f'<polyline points="{path}" fill="none" stroke="#4b5563" stroke-width="1.5"{dash} '
        'marker-end="url(#head)"/>'
    )
    if not label:
        return line
    parts = list(zip(points[:-1], points[1:], strict=True))
    (x1, y1), (x2, y2) = max(parts, key=lambda p: abs(p[0][0] - p[1][0]) + abs(p[0][1] - p[1][1]))
    if y1 == y2:
        return line + text((x1 + x2) / 2, y1 - 6, label, size=11.5, fill="#4b5563")
    middle = (y1 + y2) / 2 + 4
    return line + text(x1 + 6, middle, label, size=11.5, anchor="start", fill="#4b5563")


def page(title: str, height: int, parts: list[str], kinds: set[str]) -> str:
    """Return a whole figure with its legend."""
    legend = []
    x = 20
    for kind, name in LEGEND.items():
        if kind not in kinds:
            continue
        fill, stroke = FILLS[kind]
        dash = ' stroke-dasharray="4 2"' if kind == "frozen" else ""
        legend.append(
            f'<rect x="{x}" y="{height - 26}" width="16" height="12" rx="3" fill="{fill}" '
            f'stroke="{stroke}"{dash}/>'
        )
        legend.append(text(x + 22, height - 16, name, size=11.5, anchor="start"))
        x += 40 + 7 * len(name)
    body = "\n".join([*parts, *legend])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" \
font-family="{FONT}">
<title>{escape(title)}</title>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0,0.8 L9.4,5 L0,9.2 z" fill="#4b5563"/></marker></defs>
<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>
{body}
</svg>
"""


class Method(NamedTuple):
    """What a method puts into the one plan of all figures.

    Attributes:
        prior: Lines of the box of the prior; empty if there is none.
        reads: What the prior reads: "images", "tokenizer", "latent", "noised" or "backbone".
        router: Lines of the router's box.
        projector: Lines of the projector's box; empty if the tokens are compared as they are.
        criterion: Lines of the box of the criteria; empty if nothing is tapped.
        tap: Label of the tap.
        flow: Further lines of the flow's box.
        flow_loss: Lines of the flow loss's box.
        backbone: Lines of the backbone's box.
        uses_t: Whether the router reads the time.
        stream: Label of a second stream from the prior into the flow; empty if there is none.
        total: Line below "total".
        condition: What comes with the images.
    """

    title: str
    prior: tuple[str, ...] = ()
    reads: str = "images"
    router: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    criterion: tuple[str, ...] = ()
    tap: str = ""
    flow: tuple[str, ...] = ("t, noise → x_t",)
    flow_loss: tuple[str, ...] = ("flow loss", "|v̂ − v|²")
    backbone: tuple[str, ...] = ("backbone", "SiT, DiT or MMDiT")
    uses_t: bool = False
    stream: str = ""
    total: str = ""
    condition: str = "labels"


def method_figure(method: Method) -> str:
    """Return the figure of a method."""
    images = Box(20, 36, 100, 68, ("images", method.condition), "data")
    tokenizer = Box(150, 36, 120, 68, ("tokenizer", "VAE encoder"), "frozen")
    latent = Box(300, 36, 90, 68, ("latents", "z"), "data")
    flow = Box(420, 36, 140, 68, ("flow", *method.flow), "data")
    backbone = Box(590, 36, 190, 68, method.backbone, "trained")
    flow_loss = Box(820, 36, 160, 68, method.flow_loss, "loss")
    boxes = [images, tokenizer, latent, flow, backbone, flow_loss]
    parts = [
        arrow(left.at("right"), right.at("left"))
        for left, right in zip(boxes[:-1], boxes[1:], strict=True)
    ]
    height = 150
    if method.criterion:
        total_line = (method.total,) if method.total else ()
        total = Box(820, 170, 160, 60, ("total", *total_line), "loss")
        criterion = Box(590, 290, 190, 70, method.criterion, "loss")
        boxes += [total, criterion]
        parts.append(arrow(flow_loss.at("bottom"), total.at("top")))
        right = criterion.at("right")
        parts.append(arrow(right, (900, right[1]), total.at("bottom")))
        if method.projector:
            projector = Box(610, 165, 150, 60, method.projector, "trained")
            boxes.append(projector)
            parts.append(arrow(backbone.at("bottom"), projector.at("top"), label=method.tap))
            parts.append(arrow(projector.at("bottom"), criterion.at("top"), label="P"))
        else:
            parts.append(arrow(backbone.at("bottom"), criterion.at("top"), label=method.tap))
        height = 410
    if method.prior:
        parts += _prior_parts(method, boxes)
    kinds = {box.kind for box in boxes}
    return page(method.title, height, [*parts, *(box.svg() for box in boxes)], kinds)


def _prior_parts(method: Method, boxes: list[Box]) -> list[str]:
    """Add the boxes of prior and router; return their arrows."""
    images, tokenizer, latent, flow, backbone = boxes[:5]
    criterion = next(box for box in boxes if box.lines == method.criterion)
    prior = Box(130, 290, 200, 70, method.prior, "frozen")
    router = Box(390, 290, 140, 70, method.router, "trained" if method.uses_t else "data")
    boxes += [prior, router]
    parts = [
        arrow(prior.at("right"), router.at("left"), label="levels"),
        arrow(router.at("right"), criterion.at("left"), label="target T"),
    ]
    if method.uses_t:
        parts.append(arrow(flow.at("bottom", 0.29), router.at("top", 0.5), label="t"))
    if method.reads == "images":
        corner = (70, prior.at("left")[1])
        parts.append(arrow(images.at("bottom"), corner, prior.at("left"), label="images"))
    elif method.reads == "tokenizer":
        x, y = tokenizer.at("bottom")
        parts.append(arrow((x, y), (x, prior.y), label="encoder levels"))
    elif method.reads == "latent":
        start = latent.at("bottom", 0.1)
        parts.append(arrow(start, (start[0], prior.y), label="clean latent"))
    elif method.reads == "noised":
        start = flow.at("bottom", 0.2)
        end = (prior.x + 150, prior.y)
        corner = (start[0], 195)
        turn = (end[0], 195)
        parts.append(arrow(start, corner, turn, end, label="data, noise, t, condition"))
    else:
        start = backbone.at("bottom", 0.06)
        end = (prior.x + 150, prior.y)
        parts.append(arrow(start, (start[0], 195), (end[0], 195), end, label=method.stream))
    if method.stream and method.reads != "backbone":
        start = prior.at("top", 0.85)
        corner = (start[0], 215)
        turn = (flow.at("bottom")[0], 215)
        parts.append(arrow(start, corner, turn, flow.at("bottom"), label=method.stream))
    return parts


COSINE = ("criterion", "1 − cos(P, T)")
DINO = ("prior: TimmEncoder", "DINOv2-B patch tokens")
MLP = ("projector", "3-layer MLP")
STATIC = ("router", "static")
METHODS = {
    "sit": Method("SiT: flow matching, no alignment", backbone=("SiT", "adaLN-Zero")),
    "dit": Method(
        "DiT: discrete steps, noise and variance",
        flow=("step of 1000, noise",),
        flow_loss=("hybrid loss", "|ε̂ − ε|² + bound"),
        backbone=("DiT", "ε̂ and its variance"),
    ),
    "mmdit": Method(
        "MMDiT: text to image",
        backbone=("MMDiT", "joint attention with text"),
        condition="captions",
    ),
    "repa": Method(
        "REPA",
        prior=DINO,
        router=STATIC,
        projector=MLP,
        criterion=COSINE,
        tap="block 4 / 8",
        total="flow + 0.5 cosine",
    ),
    "irepa": Method(
        "iREPA",
        prior=("SpatialNorm(DINOv2-B)", "(y − 0.6 mean) / std"),
        router=STATIC,
        projector=("projector", "3 × 3 convolution"),
        criterion=COSINE,
        tap="block 4 / 8",
        total="flow + 1.0 cosine",
    ),
    "sara": Method(
        "SARA",
        prior=DINO,
        router=STATIC,
        projector=MLP,
        criterion=("criteria", "cosine + autocorrelation", "+ adversarial"),
        tap="block 8",
        total="flow + three terms",
    ),
    "sra": Method(
        "SRA",
        prior=("prior: TeacherPrior", "EMA at a cleaner time", "block 8 / 16 / 20"),
        reads="noised",
        router=STATIC,
        projector=("projector", "2-layer MLP"),
        criterion=("criterion", "smooth L1, β = 0.05"),
        tap="block 3 / 6 / 8",
        total="flow + 0.2 smooth L1",
    ),
    "sra2": Method(
        "SRA 2",
        prior=("prior: LatentPrior", "patches of z, 16 values"),
        reads="latent",
        router=STATIC,
        projector=("projector", "5-layer MLP"),
        criterion=("criterion", "smooth L1, β = 0.05"),
        tap="block 2 / 8",
        total="flow + smooth L1",
    ),
    "reg": Method(
        "REG",
        prior=("prior: TimmEncoder", "DINOv2-B patches", "and class token"),
        router=("router", "static,", "prefix = class token"),
        projector=MLP,
        criterion=("criterion", "1 − cos over 257 tokens"),
        tap="block 4 / 8",
        stream="class token: a second stream",
        flow_loss=("flow loss", "|v̂ − v|²", "+ 0.03 class token"),
        backbone=("ClassStream SiT / DiT", "image and class token"),
        total="flow + 0.5 cosine",
    ),
    "dupa": Method(
        "DUPA",
        flow=("2 views of each", "image: own t, noise"),
        projector=MLP,
        criterion=("criterion", "1 − cos(P₁, P₂)", "both sides learn"),
        tap="block 8: s₁, s₂",
        backbone=("DDT", "encoder | decoder"),
        total="flow + 0.5 cosine",
    ),
    "ahpa": Method(
        "AHPA",
        prior=("prior: VAETaps", "levels 7–10 and 11–14", "of the tokenizer's pass"),
        reads="tokenizer",
        router=("router", "weights α(t), β(t)"),
        projector=("projector", "3 × 3 convolution"),
        criterion=COSINE,
        tap="block 3 / 6 / 7",
        uses_t=True,
        total="flow + 1.0 cosine",
    ),
    "layersync": Method(
        "LayerSync",
        prior=("prior: BlockPrior", "a later block, detached"),
        reads="backbone",
        router=STATIC,
        criterion=("criterion", "1 − cos(h, T)"),
        tap="block 8, no projector",
        stream="block 16 of the same pass",
        total="flow + 0.2 cosine",
    ),
    "dispersive": Method(
        "Dispersive Loss",
        criterion=("regulariser", "log mean exp(−d_ij / τ)", "samples repel each other"),
        tap="one block",
        total="flow + dispersion",
    ),
    "deltafm": Method(
        "Delta-FM",
        flow_loss=("contrastive loss", "|v̂ᵢ − vᵢ|²", "− 0.05 |v̂ᵢ − vⱼ|²"),
    ),
    "haste": Method(
        "HASTE",
        prior=("prior: TimmEncoder", "DINOv2-B patch tokens", "and attention, blocks 9–12"),
        router=STATIC,
        projector=MLP,
        criterion=("criteria", "0.5 (1 − cos), block 8, +", "0.5 attention, blocks 5–8"),
        tap="tokens, attention",
        total="flow; both until step τ",
    ),
    "selfflow": Method(
        "Self-Flow",
        flow=("t and s: a time", "for each token"),
        prior=("prior: TeacherPrior", "EMA at min(t, s)", "block at 0.7 depth"),
        reads="noised",
        router=STATIC,
        projector=("projector", "2-layer MLP"),
        criterion=COSINE,
        tap="block at 0.3 depth",
        total="flow + 0.8 cosine",
    ),
    "dtsas": Method(
        "SRA with DTS-AS",
        flow=("two groups of tokens,", "a time for each"),
        prior=("prior: TeacherPrior", "EMA, the same groups", "at cleaner times, block 8"),
        reads="noised",
        router=STATIC,
        projector=("projector", "2-layer MLP"),
        criterion=COSINE,
        tap="block 3",
        total="flow + 0.5 cosine",
    ),
    "tread": Method(
        "TREAD with REPA",
        prior=DINO,
        router=STATIC,
        projector=MLP,
        criterion=("criterion", "1 − cos, kept tokens"),
        tap="kept half of the tokens",
        total="flow + 0.5 cosine",
    ),
}


def step_figure() -> str:
    """Return the figure of a training step: who calls whom, and with which values."""
    batch = Box(20, 40, 130, 60, ("batch", "uint8 images, labels"), "data")
    encode = Box(190, 40, 150, 60, ("Parts.encode", "tokenizer"), "frozen")
    clean = Box(380, 40, 150, 60, ("Clean", "streams, levels"), "data")
    flow = Box(570, 40, 150, 60, ("flow.sample", "t, then noise"), "data")
    noised = Box(760, 40, 220, 60, ("Noised", "x, t, target, data, noise"), "data")
    cond = Box(380, 140, 150, 60, ("conditioner", "label dropout"), "frozen")
    backbone = Box(760, 140, 220, 60, ("backbone", "BackboneOutput: pred, taps"), "trained")
    view = Box(570, 240, 410, 50, ("TargetView", "clean, noised, cond, out, rng, ema"), "data")
    prior = Box(20, 345, 150, 60, ("prior", "levels of features"), "frozen")
    router = Box(220, 345, 150, 60, ("router", "target T"), "trained")
    criteria = Box(420, 345, 150, 60, ("criteria", "cosine, L1, ..."), "loss")
    projector = Box(620, 345, 150, 60, ("projector", "P"), "trained")
    flow_loss = Box(830, 345, 150, 60, ("flow loss", "pred and target"), "loss")
    losses = Box(420, 455, 250, 50, ("Losses", "terms: name, value, weight"), "loss")
    update = Box(720, 455, 260, 50, ("optimiser.step", "clip, guard; then EMA"), "trained")
    boxes = [batch, encode, clean, flow, noised, cond, backbone, view, prior, router, criteria]
    boxes += [projector, flow_loss, losses, update]
    left, low = view.at("left"), prior.at("top")
    parts = [
        arrow(batch.at("right"), encode.at("left")),
        arrow(encode.at("right"), clean.at("left")),
        arrow(clean.at("right"), flow.at("left")),
        arrow(flow.at("right"), noised.at("left")),
        arrow(clean.at("bottom"), cond.at("top")),
        arrow(cond.at("right"), backbone.at("left"), label="condition"),
        arrow(noised.at("bottom"), backbone.at("top")),
        arrow(backbone.at("bottom"), (870, 240)),
        arrow(left, (low[0], left[1]), low, label="what a prior may look at"),
        arrow(prior.at("right"), router.at("left")),
        arrow(router.at("right"), criteria.at("left")),
        arrow((695, 290), projector.at("top"), label="tap"),
        arrow(projector.at("left"), criteria.at("right")),
        arrow((905, 290), flow_loss.at("top")),
        arrow(criteria.at("bottom"), (495, 455)),
        arrow(flow_loss.at("bottom"), (905, 430), (620, 430), (620, 455)),
        arrow(losses.at("right"), update.at("left"), label="total"),
        arrow((600, 290), (600, 318), (295, 318), router.at("top"), label="t"),
    ]
    kinds = {box.kind for box in boxes}
    return page("A training step", 550, [*parts, *(box.svg() for box in boxes)], kinds)


def figures() -> dict[str, str]:
    """Return {file name: SVG}."""
    drawn = {f"method_{name}.svg": method_figure(method) for name, method in METHODS.items()}
    return {"step.svg": step_figure(), **drawn}


def main(arguments: list[str] | None = None) -> int:
    """Write the figures, or compare them with the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    args = parser.parse_args(arguments)
    outdated = 0
    for name, content in figures().items():
        path = IMAGES / name
        if args.check:
            if not path.exists() or path.read_text() != content:
                print(f"{path} is out of date: run python tools/make_figures.py", file=sys.stderr)
                outdated = 1
        else:
            path.write_text(content)
    return outdated


if __name__ == "__main__":
    sys.exit(main())
