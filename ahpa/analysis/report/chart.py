"""Small charts as SVG whose colours follow the page, so that they are right in the dark and in
print; each says in words what it shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .html import Html, paragraph, tag
from .methods import Point

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 36  # margins
LOOKS = 8  # colours and dashes in the style sheet
LOG_RATIO = 30  # a positive axis that spans more is logarithmic
ROW = 38  # height of a method's row of dots
LONGEST = 48  # characters of a name in a chart
START = 0.05  # share of x that may be off the scale
FEWEST_POINTS = 20  # of all lines, for leaving the start out of the scale
BINS = 26  # columns of a map


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: Its name.
        points: Its points in order of x.
        look: Number of its colour and dashes.
        owner: Class by which it is hidden and shown; may be empty.
    """

    label: str
    points: Sequence[Point]
    look: int
    owner: str = ""

    @property
    def style(self) -> str:
        """Classes of the element."""
        return f"series look{self.look % LOOKS} {self.owner}".rstrip()


def number(value: float) -> str:
    """Return a number for an axis or a sentence: 400k, 0.05, 1.2e-06."""
    if abs(value) >= 10_000 and value == round(value, -2):
        for size, unit in ((1_000_000, "M"), (1_000, "k")):
            if abs(value) >= size:
                return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


# ---- axes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Pixel of the lowest value.
        end: Pixel of the highest value.
        logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values between the ends."""
        if not self.logarithmic:
            return linear_ticks(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        step = max(1, (last - first) // 5)
        factors = (1, 2, 5) if last - first < 3 else (1,)
        values = [f * 10.0**power for power in range(first, last + 1, step) for f in factors]
        return [value for value in values if self.low <= value <= self.high]


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values from `low` to `high`."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(f * size for f in (1, 2, 2.5, 5, 10) if f * size >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def fit(values: Sequence[float], start: float, end: float, *, tight: bool = False) -> Axis:
    """Return an axis that holds the values.

    Args:
        values: All finite values.
        start: Pixel of the lowest value.
        end: Pixel of the highest value.
        tight: Whether the ends are the values themselves, on a linear scale.
    """
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return Axis(low - margin, high + margin, start, end)
    if tight:
        return Axis(low, high, start, end)
    if low > 0 and high / low > LOG_RATIO:
        return Axis(low / 1.1, high * 1.1, start, end, logarithmic=True)
    margin = 0.05 * (high - low)
    bottom = 0.0 if 0 <= low < 0.25 * high else low - margin
    return Axis(bottom, high + margin, start, end)


def text(x: float, y: float, content: str, anchor: str = "middle") -> Html:
    """Return a text of a chart."""
    return tag("text", content, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def frame(x_axis: Axis, y_axis: Axis, x_label: str) -> list[Html]:
    """Draw grid lines, ticks and their numbers."""
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in y_axis.ticks():
        y = f"{y_axis.place(value):.1f}"
        parts.append(tag("line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(text(LEFT - 6, float(y) + 4, number(value), "end"))
    for value in x_axis.ticks():
        x = x_axis.place(value)
        shown = f"{x:.1f}"
        parts.append(tag("line", class_="tick", x1=shown, x2=shown, y1=bottom, y2=bottom + 4))
        anchor = "end" if x > right - 12 else "middle"
        parts.append(text(x, bottom + 16, number(value), anchor))
    parts.append(tag("line", class_="tick", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    label = f"{x_label}; y logarithmic" if y_axis.logarithmic else x_label
    parts.append(text((LEFT + right) / 2, HEIGHT - 4, label))
    return parts


# ---- charts -------------------------------------------------------------------------------------


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    legend: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Html:
    """Draw lines with bands.

    Args:
        title: What is drawn.
        series: The lines; those without points are left out.
        x_label: What x is.
        legend: Whether the names of the lines stand below the chart.
        y_range: Ends of a linear y axis; by default they and the scale follow from the values.
    """
    series = [line for line in series if line.points]
    points = [point for line in series for point in line.points]
    x_axis = fit([point.x for point in points], LEFT, WIDTH - RIGHT, tight=True)
    decisive = without_start(points) if y_range is None else points
    ends = [value for point in decisive for value in (point.low, point.mean, point.high)]
    y_axis = fit(ends, HEIGHT - BOTTOM, TOP)
    if y_range is not None:
        y_axis = Axis(*y_range, HEIGHT - BOTTOM, TOP)
    cut = "; the start is off the scale" if len(decisive) < len(points) else ""
    parts = frame(x_axis, y_axis, f"{x_label}{cut}")
    for line in series:
        parts.append(tag("g", *draw_line(line, x_axis, y_axis), class_=line.style))
    words = "; ".join(describe(line) for line in series)
    names = key(series) if legend else None
    return figure(title, svg(parts, f"{title} over {x_label}. {words}."), names)


def without_start(points: Sequence[Point]) -> Sequence[Point]:
    """Return the points that decide the y axis: all, or those after the first 5 % of x if the start
    would take more than two thirds of the height."""
    first, last = min(p.x for p in points), max(p.x for p in points)
    late = [p for p in points if p.x >= first + START * (last - first)]
    if len(late) < FEWEST_POINTS:
        return points
    spans = [max(p.high for p in part) - min(p.low for p in part) for part in (points, late)]
    return late if spans[0] > 3 * spans[1] > 0 else points


def describe(line: Series) -> str:
    """Return a line in words."""
    first, last = line.points[0], line.points[-1]
    ends = f"{number(first.mean)} at {number(first.x)} to {number(last.mean)} at {number(last.x)}"
    return f"{line.label}: from {ends}"


def draw_line(line: Series, x_axis: Axis, y_axis: Axis) -> list[Html]:
    """Draw the band and the line; where fewer seeds are left, it is thin."""
    most = max(point.seeds for point in line.points)
    segments: list[list[Point]] = []
    for point in line.points:
        if not segments or segments[-1][0].seeds != point.seeds:
            segments.append([])
        segments[-1].append(point)

    def corners(points: Sequence[Point], values: Sequence[float]) -> str:
        pairs = zip(points, values, strict=True)
        return " ".join(f"{x_axis.place(p.x):.1f},{y_axis.place(value):.1f}" for p, value in pairs)

    parts = []
    for part in segments:
        upper, lower = [p.high for p in part], [p.low for p in part]
        if part[0].seeds > 1 and len(part) > 1:
            back = corners(part[::-1], lower[::-1])
            parts.append(tag("polygon", class_="band", points=f"{corners(part, upper)} {back}"))
        elif part[0].seeds > 1:
            x = f"{x_axis.place(part[0].x):.1f}"
            top, bottom = (f"{y_axis.place(v):.1f}" for v in (upper[0], lower[0]))
            parts.append(tag("line", class_="whisker", x1=x, x2=x, y1=top, y2=bottom))
        weight = "line" if part[0].seeds == most else "line partial"
        middle = corners(part, [p.mean for p in part])
        if len(part) > 1:
            parts.append(tag("polyline", class_=weight, points=middle))
        else:
            x, y = middle.split(",")
            parts.append(tag("circle", class_="dot", cx=x, cy=y, r=3))
    return parts


def dot_chart(title: str, rows: Sequence[tuple[str, Sequence[float], int, str]], *, x: str) -> Html:
    """Draw one dot for each seed and a stroke at the mean, one row for each method.

    Args:
        title: What is drawn.
        rows: (name, values, number of the look, class by which it is hidden).
        x: What x is.
    """
    rows = [row for row in rows if row[1]]
    height = ROW * len(rows) + BOTTOM + TOP
    axis = fit([value for row in rows for value in row[1]], LEFT, WIDTH - RIGHT)
    parts = []
    for value in axis.ticks():
        place = f"{axis.place(value):.1f}"
        parts.append(tag("line", class_="grid", x1=place, x2=place, y1=TOP, y2=height - BOTTOM))
        parts.append(text(float(place), height - BOTTOM + 16, number(value)))
    words = []
    for index, (name, values, look, owner) in enumerate(rows):
        y = TOP + ROW * index + 26
        mean = math.fsum(values) / len(values)
        middle = f"{axis.place(mean):.1f}"
        marks = [tag("line", class_="mean", x1=middle, x2=middle, y1=y - 8, y2=y + 8)]
        marks.append(
            text(LEFT, y - 11, name if len(name) <= LONGEST else f"{name[:LONGEST]}…", "start")
        )
        for value in values:
            marks.append(tag("circle", class_="dot", cx=f"{axis.place(value):.1f}", cy=y, r=4))
        parts.append(tag("g", *marks, class_=f"series look{look % LOOKS} {owner}"))
        words.append(f"{name}: {', '.join(number(value) for value in values)}")
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 4, x))
    return figure(title, svg(parts, f"{title}. {'; '.join(words)}.", height), None)


def map_chart(title: str, t: Sequence[float], rows: Sequence[tuple[str, Sequence[float]]]) -> Html:
    """Draw rows of shades over t, for more lines than can be told apart.

    Args:
        title: What is drawn.
        t: Times.
        rows: (name, value at each time), drawn from the bottom.
    """
    tall = 14
    height = tall * len(rows) + BOTTOM + TOP
    most = max(max(values) for _, values in rows) or 1.0
    left = LEFT + 40
    x_axis = fit(t, left, WIDTH - RIGHT, tight=True)
    parts = []
    wide = (WIDTH - RIGHT - left) / BINS
    for index, (name, values) in enumerate(reversed(rows)):
        y = TOP + tall * index
        parts.append(text(left - 6, y + 11, name, "end"))
        for column in range(BINS):
            value = values[round(column * (len(t) - 1) / (BINS - 1))]
            shade = f"{max(value, 0.0) / most:.2f}"
            place = dict(x=f"{left + column * wide:.1f}", y=y, width=f"{wide:.2f}", height=tall)
            parts.append(tag("rect", class_="shade", fill_opacity=shade, **place))
    for value in x_axis.ticks():
        parts.append(text(x_axis.place(value), height - BOTTOM + 16, number(value)))
    label = f"t (0 data, 1 noise); the darkest shade is {number(most)}"
    parts.append(text((left + WIDTH - RIGHT) / 2, height - 4, label))
    highest = max(rows, key=lambda row: math.fsum(row[1]))[0]
    words = f"{title} over t, {len(rows)} rows; on average {highest} is the largest."
    return figure(title, svg(parts, words, height), None)


def svg(parts: Sequence[Html], words: str, height: float = HEIGHT) -> Html:
    """Return a chart, with its description for those who do not see it."""
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=words,
        class_="plot",
    )


def figure(title: str, chart: Html, legend: Html | None) -> Html:
    """Return a chart with its title."""
    return tag("figure", tag("figcaption", title), chart, legend, class_="chart")


def swatch(look: int) -> Html:
    """Return a short piece of a line, for legends."""
    line = tag("line", class_="line", x1=1, x2=27, y1=6, y2=6)
    return tag(
        "svg",
        tag("g", line, class_=f"series look{look % LOOKS}"),
        viewBox="0 0 28 12",
        class_="swatch",
        aria_hidden="true",
    )


def key(series: Sequence[Series]) -> Html:
    """Return the names of lines with their looks."""
    names = [tag("span", swatch(line.look), f" {line.label}") for line in series]
    return paragraph(*names, class_="key")
