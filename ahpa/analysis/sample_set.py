"""Samples for evaluation: a folder of parts that several processes fill and that survives a kill.

Sample i is the same bit for bit for any batch size, number of processes, number of samples, and
after a resume. What a network computes for an image depends in its last bits on the shape of the
whole forward pass, and on a CPU on the number of threads. So images are always drawn in the same
tiles: tile k holds the images [k T, (k + 1) T), and on a CPU a process draws with one thread. The
last tile is drawn whole too; readers pass over the images beyond the last one.

set.json says how the images are drawn; tiles/000000.npy and so on hold T images each, uint8
[T, H, W, 3], and each is complete or absent.
"""

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..engine.distributed import Processes
from ..engine.pictures import save_pngs
from ..evaluation.images import (
    LABELS,
    ArrayImages,
    Batch,
    ImageSet,
    member_names,
    read_array,
    to_uint8,
    write_npz,
)
from ..evaluation.protocol import differences
from ..registry import UserError
from ..registry.contracts import Prediction
from ..registry.files import read_json, user_path, whole_file, write_file
from ..registry.precision import autocast
from ..registry.seeds import mix_seed
from ..registry.validation import integer, positive_int
from ..sampling.generator import LARGEST_SEED, Generator
from ..sampling.progress import SamplingBar
from .cost import forward_macs
from .protocols import (
    SamplingProtocol,
    called_times,
    class_numbers,
    sampling_record,
    weights_sha256,
)

logger = logging.getLogger("ahpa")

FORMAT = "ahpa-samples-1"
RECORD = "set.json"
LABEL_STREAM = 0x6C6162656C  # keeps the draw of labels apart from other uses of a seed
STALE = 3600  # seconds after which a killed writer's file is removed
LARGEST_RECORD = 1 << 20  # bytes of a record inside an .npz
NAMED = 3  # differences that a message lists

Watch = Callable[[Prediction, int], Prediction]
"""Wraps the model of B samples so that its calls are followed."""


class Drawing(NamedTuple):
    """A model and how samples are drawn from it.

    Attributes:
        generator: The model.
        protocol: How it is sampled.
        seed: Seed of noise and labels.
        prompts: The prompts that are used in turn; None for classes.
    """

    generator: Generator
    protocol: SamplingProtocol
    seed: int = 0
    prompts: Sequence[str] | None = None

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        generator = self.generator
        return generator.backbone.streams["image"][-1] * generator.tokenizer.downsample

    @property
    def kinds(self) -> list[Any]:
        """The classes or prompts that the samples share."""
        if self.prompts is not None:
            return list(self.prompts)
        return class_numbers(self.generator)

    def label(self, index: int) -> int:
        """Return the number of the class or prompt of an image."""
        return label_of(index, len(self.kinds), self.protocol.balance, self.seed)

    def tile(self, number: int, watch: Watch | None = None) -> Tensor:
        """Draw a tile.

        Args:
            number: Number of the tile, from 0.
            watch: Wraps the model to follow the sampler's calls.

        Returns:
            uint8 [T, 3, H, W] on the CPU.

        Raises:
            UserError: If an image holds values that are not numbers.
        """
        size = self.protocol.tile
        first = number * size
        kinds = self.kinds
        balance = self.protocol.balance
        wanted = [
            kinds[label_of(index, len(kinds), balance, self.seed)]
            for index in range(first, first + size)
        ]
        generator = self.generator
        device = next(generator.backbone.parameters()).device
        with one_thread(device), torch.no_grad():
            latents = generator.latents(
                wanted,
                seed=self.seed,
                first=first,
                watch=watch,
                **self.protocol.sampling_options(),
            )
            images = generator.tokenizer.decode(latents["image"].float())
            return to_uint8(images, self.protocol.uint8).cpu()

    def batches(self, processes: Processes, watch: Watch | None = None) -> Iterator[Batch]:
        """Draw the images of this process tile by tile, without storing them."""
        size, count = self.protocol.tile, self.protocol.count
        for number in range(processes.rank, tiles_of(count, size), processes.world):
            images = self.tile(number, watch)[: count - number * size]
            indices = torch.arange(number * size, number * size + len(images))
            prompts = None
            if self.prompts is not None:
                prompts = [self.prompts[self.label(index)] for index in indices.tolist()]
            yield Batch(indices, images, prompts)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the images, as plain values."""
        device = next(self.generator.backbone.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            **sampling_record(self.generator, self.protocol, self.prompts),
            "seed": self.seed,
            "network_sha256": weights_sha256(self.generator.backbone),
            "device": name,
        }


def label_of(index: int, kinds: int, balance: str, seed: int) -> int:
    """Return the number of the class of image `index`: index mod K, or drawn from (seed, index)."""
    if balance == "balanced":
        return index % kinds
    return mix_seed(seed, index, LABEL_STREAM) % kinds


def tiles_of(count: int, size: int) -> int:
    """Return how many tiles of `size` images hold `count` images."""
    return -(-count // size)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute with one thread on a CPU: more of them split sums otherwise, with other last bits."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- stored sets ----------------------------------------------------------------------------


class SampleSet(ImageSet):
    """A stored set of samples.

    Args:
        path: Its folder.
        count: How many images are read, from the first; None for all that were asked for.

    Attributes:
        record: What set.json says: how the images are drawn, their protocol and provenance.

    Raises:
        UserError: If the folder holds no set, or the set has fewer images.
    """

    def __init__(self, path: Path | str, *, count: int | None = None) -> None:
        folder = user_path(path, "the samples")
        self.record = read_record(folder)
        options = self.record["options"]
        self.tile_size = positive_int(f"{folder}: tile", options["tile"])
        known = positive_int(f"{folder}: count", self.record["count"])
        if count is not None and count > known:
            raise UserError(f"{folder} holds {known} samples, fewer than {count}.")
        wanted = known if count is None else count
        missing = missing_tiles(folder, wanted, self.tile_size)
        if missing:
            tiles = tiles_of(wanted, self.tile_size)
            raise UserError(
                f"{folder} is not complete: {len(missing)} of {tiles} parts are missing. Give the "
                "same command again, and it continues."
            )
        prompts = self.record["prompts"]
        kinds = len(prompts) if prompts is not None else options["classes"]["count"]
        balance, seed = options["classes"]["balance"], options["seed"]
        labels = [label_of(index, kinds, balance, seed) for index in range(wanted)]
        height, width = self.record["size"]
        super().__init__(
            folder,
            count=wanted,
            size=(height, width),
            labels=torch.tensor(labels),
            prompts=None if prompts is None else [prompts[label] for label in labels],
        )

    @property
    def protocol(self) -> dict[str, Any]:
        """The part of an evaluation's protocol that concerns the samples."""
        return dict(self.record["protocol"])

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance of the samples."""
        return dict(self.record["provenance"])

    def compute_sha256(self) -> str:
        """Return the SHA-256 of the images."""
        found = hashlib.sha256()
        for image in self.read(range(self.count)):
            found.update(np.ascontiguousarray(image).tobytes())
        return found.hexdigest()

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the images of ascending indices, uint8 [H, W, 3]."""
        size = self.tile_size
        for number, group in itertools.groupby(indices, key=lambda index: index // size):
            part = ArrayImages(part_path(self.path, number))
            if (len(part), *part.size) != (size, *self.size):
                raise UserError(f"{part.path} does not hold {size} images of {self.size} pixels.")
            yield from part.read([index % size for index in group])


def part_path(folder: Path, number: int) -> Path:
    """Return the path of a tile."""
    return folder / "tiles" / f"{number:06d}.npy"


def missing_tiles(folder: Path, count: int, size: int) -> list[int]:
    """List the tiles of the first `count` images that are not there."""
    tiles = range(tiles_of(count, size))
    return [number for number in tiles if not part_path(folder, number).is_file()]


def is_sample_set(path: Path) -> bool:
    """Whether a folder is one that `draw_set` fills."""
    return (path / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """Read set.json. Raises UserError if it is missing or something else."""
    if not is_sample_set(folder):
        raise UserError(f"{folder} holds no samples of ahpa: there is no {RECORD}.")
    found = read_json(folder / RECORD, f"{folder}")
    needed = ("options", "protocol", "provenance", "count", "size", "prompts")
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise UserError(f"{folder}: {RECORD} is not of the format {FORMAT!r}.")
    for key in needed:
        if key not in found:
            raise UserError(f"{folder}: {RECORD} lacks {key!r}.")
    for key in ("tile", "seed", "classes"):
        if key not in found["options"]:
            raise UserError(f"{folder}: {RECORD} lacks 'options.{key}'.")
    return dict(found)


def draw_set(
    folder: Path,
    drawing: Drawing,
    *,
    protocol: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    batch: int = 64,
    progress: bool = False,
) -> SampleSet:
    """Draw what is missing of a set, and return it.

    Args:
        folder: Where the set is or will be.
        drawing: The model, how it is sampled, and the number of images.
        protocol: Further values of the protocol, such as the iteration.
        provenance: Where the model comes from.
        processes: The processes that share the work; None for this one alone.
        batch: Images in memory at once, at least a tile; it changes no image.
        progress: Whether the first process shows a progress bar, if the terminal is one.

    Raises:
        UserError: If the folder holds samples that were drawn otherwise (names the difference), a
            part cannot be written, or an option is out of its range. Parts that are there stay.
    """
    group = processes or Processes()
    plan = drawing.protocol
    positive_int("batch", batch)
    integer("seed", drawing.seed, least=-LARGEST_SEED, most=LARGEST_SEED)
    options = drawing.identity() if group.rank == 0 else {}
    record = {
        "format": FORMAT,
        "count": plan.count,
        "size": [drawing.side, drawing.side],
        "options": options,
        "prompts": None if drawing.prompts is None else list(drawing.prompts),
        "protocol": {**without(options, "seed", "network_sha256", "device"), **(protocol or {})},
        "provenance": {**(provenance or {}), "sampling_seed": drawing.seed},
    }
    missing = group.on_first(lambda: open_set(folder, record))
    mistake: UserError | None = None
    with SamplingBar(plan.count, shown=progress and group.rank == 0) as bar:
        present = tiles_of(plan.count, plan.tile) - len(missing)
        bar.finish(min(present * plan.tile, plan.count))
        try:
            draw_tiles(folder, drawing, missing[group.rank :: group.world], batch, bar, group.world)
        except UserError as error:
            mistake = error
        first = next((error for error in group.gather(mistake) if error is not None), None)
        if first is not None:
            raise first
        bar.finish(plan.count)
    return SampleSet(folder, count=plan.count)


def draw_tiles(
    folder: Path,
    drawing: Drawing,
    numbers: Sequence[int],
    batch: int,
    bar: SamplingBar,
    world: int,
) -> None:
    """Draw and write tiles, `batch` images at a time.

    Args:
        folder: The set's folder.
        drawing: The model and how it is sampled.
        numbers: The tiles of this process.
        batch: Images in memory at once.
        bar: The progress bar; every process is taken to be as fast as this one.
        world: Number of processes.
    """
    count, size = drawing.protocol.count, drawing.protocol.tile

    def watch(model: Prediction, _images: int) -> Prediction:
        return bar.watch(model, size * world)

    at_once = max(1, batch // size)
    for begin in range(0, len(numbers), at_once):
        drawn = {}
        for number in numbers[begin : begin + at_once]:
            drawn[number] = drawing.tile(number, watch)
            bar.finish(min(bar.done + size * world, count))
        for number, images in drawn.items():
            write_part(part_path(folder, number), images)


def write_part(path: Path, images: Tensor) -> None:
    """Write images uint8 [T, 3, H, W] as a .npy [T, H, W, 3]. Raises UserError if that fails."""
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    with whole_file(path) as aside, open(aside, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def open_set(folder: Path, record: Mapping[str, Any]) -> list[int]:
    """Start or continue a set: write set.json and list the tiles that are missing.

    Raises:
        UserError: If the folder holds something else, or samples that were drawn otherwise.
    """
    kept = dict(record)
    if is_sample_set(folder):
        before = read_record(folder)
        refuse_other(folder, before["options"], record["options"])
        kept["count"] = max(int(before["count"]), int(record["count"]))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no samples of ahpa; name another folder.")
    for left in folder.glob("tiles/.*.tmp"):  # of a writer that was killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
    write_file(folder / RECORD, json.dumps(kept, indent=1).encode() + b"\n")
    return missing_tiles(folder, int(record["count"]), int(record["options"]["tile"]))


def refuse_other(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a set with other options. Raises UserError that names the differences."""
    found = differences(before, json.loads(json.dumps(now)))
    if found:
        shown = "; ".join(str(difference) for difference in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise UserError(
            f"{folder} holds samples that were drawn otherwise: {shown}{more}. Name another "
            "folder, or remove this one."
        )


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a dict without some keys."""
    return {key: value for key, value in values.items() if key not in names}


# ---- cost -----------------------------------------------------------------------------------


class SamplingCost(NamedTuple):
    """What an image costs.

    Attributes:
        calls: Calls of the network for a tile; None for an adaptive sampler.
        macs: Multiply-accumulates of the network for an image; guided calls count twice.
        call_seconds: Measured time of a call for one tile.
        seconds: Estimated time for an image, with its decoding.
    """

    calls: int | None
    macs: float
    call_seconds: float
    seconds: float


def measured_cost(drawing: Drawing) -> SamplingCost:
    """Measure one call of the network and one decoding, both of a whole tile."""
    generator, protocol = drawing.generator, drawing.protocol
    sampler = generator.sampler(protocol.sampler)
    low, high = protocol.cfg_interval
    calls = None
    passes: float = protocol.steps
    if not sampler.adaptive:
        times = called_times(generator, sampler, protocol.steps)
        calls = len(times)
        guided = sum(low <= t <= high for t in times) if protocol.cfg_scale != 1 else 0
        passes = calls + guided
    size = protocol.tile
    device = next(generator.backbone.parameters()).device
    x = generator.start_noise(size)
    cond = generator.conditioner.encode([drawing.kinds[0]] * size, device)
    t = torch.ones(size, device=device)
    with one_thread(device), torch.no_grad(), autocast(device, protocol.precision):
        call = seconds_of(lambda: generator.predict(x, t, cond), device)
        latent = x["image"][:, : generator.tokenizer.latent_channels]
        decoding = seconds_of(lambda: generator.tokenizer.decode(latent.float()), device)
    macs = forward_macs(generator.backbone).total * passes
    return SamplingCost(calls, macs, call, (call * passes + decoding) / size)


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Return how long the second of two calls takes."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - began


# ---- other formats --------------------------------------------------------------------------

EMBEDDED = "protocol"  # array of an .npz, and stem of a file in a folder of pictures


def export(images: SampleSet, out: Path) -> None:
    """Write a set as ADM's .npz, or as a folder of PNGs, with its protocol.

    Args:
        images: The set.
        out: A path that ends in .npz, or a folder.

    Raises:
        UserError: If it cannot be written.
    """
    assert images.labels is not None
    pictures = (batch.images for batch in images.batches(images.tile_size))
    text = json.dumps({"protocol": images.protocol, "provenance": images.provenance})
    prompts = images.record["prompts"]
    if out.suffix.lower() == ".npz":
        arrays = {LABELS: images.labels.numpy(), EMBEDDED: np.asarray(text)}
        if prompts is not None:
            arrays["prompts"] = np.asarray(prompts)
        write_npz(out, pictures, count=len(images), size=images.size, arrays=arrays)
        return
    save_pngs(pictures, images.labels.tolist(), out, prompts=prompts)
    write_file(out / f"{EMBEDDED}.json", text.encode() + b"\n")


def recorded(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return protocol and provenance that `export` wrote beside images; None if there are none."""
    if path.is_file() and path.suffix.lower() == ".npz":
        if EMBEDDED not in member_names(path):
            return None
        found = json.loads(str(read_array(path, EMBEDDED, most=LARGEST_RECORD).item()))
    elif (path / f"{EMBEDDED}.json").is_file():
        found = read_json(path / f"{EMBEDDED}.json", f"{path}")
    else:
        return None
    sections = [found.get(key) if isinstance(found, Mapping) else None for key in (EMBEDDED,)]
    if not all(isinstance(section, Mapping) for section in sections):
        raise UserError(f"{path}: its record of a protocol is damaged.")
    return dict(found["protocol"]), dict(found.get("provenance") or {})
