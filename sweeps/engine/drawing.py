"""The stage tree, drawn: as text for the plan, and as a figure."""

from collections import Counter
from collections.abc import Mapping
from math import ceil, inf
from pathlib import Path

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.text import Text
from rich.tree import Tree as Drawing

from sweeps.engine.items import items
from sweeps.engine.jobs import lane_shares
from sweeps.engine.plan import Node, Plan, Tree
from trainables.common.timeline import Ramp

STRETCHES = {"rise": "#9aa5b1", "stable": "#1b4965", "fall": "#e07a5f"}
LABELS = {"rise": "warm-up", "stable": "stable", "fall": "decay"}
SHOWN_STAGES = 40


def stretches(node: Node) -> list[tuple[str, int, int]]:
    """(kind, start, stop) of what a stage runs through: rise, stable or fall."""
    parts = []
    for placed in node.placed:
        start, stop = max(placed.start, node.start), min(placed.stop, node.stop)
        kind = "stable" if placed.segment.constant else "fall" if placed.segment.falling else "rise"
        parts.append((kind, start, stop))
    return parts


def _knob(node: Node) -> str:
    """The knobs of a stage's last segment in words."""
    words = []
    for name, value in node.placed[-1].segment.knobs:
        if isinstance(value, Ramp):
            words.append(f"{name} {value.start:.3g} to {value.end:.3g} ({value.shape})")
        else:
            words.append(f"{name} {value:.3g}")
    return ", ".join(words)


def as_text(plan: Plan, names: Mapping[str, str], stages: int = SHOWN_STAGES) -> Drawing:
    """The tree of the root with the most stages, at most `stages` of them. `names`: trial key -> its name."""
    tree = max(plan.trees, key=lambda tree: sum(1 for _ in tree.nodes()))
    others = len(plan.trees) - 1
    title = f"one tree of {len(plan.trees)}" if others else "the tree"
    drawing = Drawing(f"[bold]{title}[/bold], root {tree.root_key[:8]}: {len(tree.trials)} trials")
    left = [stages]

    def grow(node: Node, parent: Drawing) -> None:
        if left[0] <= 0:
            return
        left[0] -= 1
        ends = ", ".join(names.get(trial.key, trial.key[:8]) for trial in node.ends)
        state = "" if node.runs else " [dim](there)[/dim]"
        words = " + ".join(LABELS[kind] for kind, _, _ in stretches(node))
        line = f"{node.start:,} to {node.stop:,}  {words}: {_knob(node)}{state}" + (
            f"  [green]{ends}[/green]" if ends else ""
        )
        branch = parent.add(line)
        for child in node.children:
            grow(child, branch)

    for top in tree.tops:
        grow(top, drawing)
    hidden = sum(1 for _ in tree.nodes()) - stages
    if hidden > 0:
        drawing.add(f"[dim]and {hidden} more stages[/dim]")
    return drawing


def as_shapes(plan: Plan, slots: int) -> Drawing:
    """The trials of a fused study by shape: how many lanes of how many steps, in how many jobs."""
    waiting = [item for tree in plan.trees for item in items(tree, inf)]
    shares, lanes = lane_shares(waiting, slots), Counter(item.shape for item in waiting)
    drawing = Drawing(f"[bold]{len(plan.trees):,} lanes[/bold], {len(waiting):,} to train, of {len(lanes)} shapes")
    for item in {item.shape: item for item in waiting}.values():
        count, jobs = lanes[item.shape], ceil(lanes[item.shape] / shares[item.shape])
        words = f"{count:,} lanes of {item.steps:,} steps in {jobs} job{'' if jobs == 1 else 's'}"
        drawing.add(Text(f"{words}: shape {item.shape[1]}"))
    return drawing


def as_figure(plan: Plan, unit: str = "optimizer steps") -> Figure:
    """The tree of the root with the most stages: time runs to the right, every line is trained once."""
    tree = max(plan.trees, key=lambda tree: sum(1 for _ in tree.nodes()))
    rows = _rows(tree)
    figure = Figure(figsize=(8, min(9.0, 1.6 + 0.13 * len(set(rows.values())))), layout="constrained")
    axes = figure.add_subplot()
    for kind, colour in STRETCHES.items():
        lines = [
            [(start, rows[id(node)]), (stop, rows[id(node)])]
            for node in tree.nodes()
            for own, start, stop in stretches(node)
            if own == kind
        ]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=1.2 if kind == "rise" else 1.8))
    forks = [
        [(node.stop, rows[id(node)]), (node.stop, rows[id(child)])]
        for node in tree.nodes()
        for child in node.children
        if rows[id(child)] != rows[id(node)]
    ]
    axes.add_collection(LineCollection(forks, colors="#c3c9d0", linewidths=0.7, zorder=0))
    ends = [(node.stop, rows[id(node)]) for node in tree.nodes() if node.ends]
    axes.plot([x for x, _ in ends], [y for _, y in ends], "o", color="black", markersize=2.6, linestyle="none")
    axes.set(xlabel=unit, yticks=[], xlim=(0, None))
    axes.margins(x=0.02, y=0.04)
    axes.autoscale_view()
    axes.invert_yaxis()
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    own = sum(trial.steps for trial in tree.trials)
    shared = sum(node.steps for node in tree.nodes())
    axes.set_title(
        f"one root: {len(tree.trials)} trials, {shared:,} steps trained for {own:,} ({own / shared:.2f}x)", fontsize=10
    )
    keys = [Line2D([], [], color=colour, linewidth=2, label=LABELS[kind]) for kind, colour in STRETCHES.items()]
    keys.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle="none", label="a trial's end"))
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _rows(tree: Tree) -> dict[int, int]:
    """id(node) -> row: a stage stays in its parent's row when it is the one that goes on longest."""
    depth: dict[int, int] = {}
    for node in reversed(list(tree.nodes())):
        depth[id(node)] = max([node.stop, *(depth[id(child)] for child in node.children)])
    rows: dict[int, int] = {}
    free = 0
    waiting: list[tuple[Node, int | None]] = [(top, None) for top in reversed(tree.tops)]
    while waiting:
        node, row = waiting.pop()
        if row is None:
            row, free = free, free + 1
        rows[id(node)] = row
        ordered = sorted(node.children, key=lambda child: depth[id(child)])
        waiting.extend((child, row if child is ordered[-1] else None) for child in ordered)
    return rows


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
