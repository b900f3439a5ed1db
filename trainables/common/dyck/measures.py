"""What is seen in a net that reads brackets: how well it closes them, and what its last attention does (2312.01429).

The net's last block is an attention whose logits between two positions are s(key, query). Its input at a position,
averaged over all positions of a class, stands for that class; with a first layer that knows only the class it is it.
"""

# P lanes, B rows, T positions with BOS, D width, C classes, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from trainables.common.dyck.source import Rows, Source
from trainables.common.lanes import Lanes
from trainables.common.sequence.mixers import linear
from trainables.common.sequence.network import Architecture, blocks, embedded, logits, normed, of_part


def closes_right(source: Source, logits_PBTV: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(is the likeliest closing bracket the one that may close, is any bracket open), each [P, B, T - 1] after BOS."""
    closing = logits_PBTV[:, :, 1:, source.kinds : 2 * source.kinds].argmax(-1)
    return closing == rows.needed, rows.depths > 0


def closing_accuracy(
    right_PBT: torch.Tensor, open_PBT: torch.Tensor, lengths: Sequence[int], start: int = 0
) -> list[torch.Tensor]:
    """Share of open positions closed right, [P], within start + 1 .. lengths[0] brackets, then .. lengths[1], ..."""
    found = []
    for stop in lengths:
        counted = open_PBT[:, :, start:stop]
        found.append((right_PBT[:, :, start:stop] & counted).sum((1, 2)) / counted.sum((1, 2)))
        start = stop
    return found


def refuse_rows_that_lack(source: Source, rows: Rows, lengths: Sequence[int]) -> None:
    """Raise ValueError where a class does not occur up to the first length, or no bracket is open in an interval.

    What is said of them would be made up; known before anything is trained.
    """
    start, short = 0, Rows(*(part[:, :, : lengths[0]] for part in rows))
    seen = source.classes_of(short).unique()
    if len(seen) < source.classes:
        raise ValueError(
            f"{source.classes - len(seen)} of {source.classes} classes of brackets do not occur in the rows that are "
            "looked at; raise evaluation_rows or length, or lower depth"
        )
    for stop in lengths:
        if not (rows.depths[:, :, start:stop] > 0).any():
            raise ValueError(f"no bracket is open at places {start + 1} to {stop}: take ood_lengths further apart")
        start = stop


def divergence(logits_PBTV: torch.Tensor, chances_PBTV: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of a net's next token from the source's, mean over positions, nats, [P]."""
    logs = logits_PBTV.float().log_softmax(-1)
    return (torch.xlogy(chances_PBTV, chances_PBTV) - chances_PBTV * logs).sum(-1).mean((1, 2))


def last_inputs(net: Architecture, weights: Lanes, inputs: torch.Tensor) -> torch.Tensor:
    """What the last attention reads, [P, B, T, D], after its layer norm."""
    x_PBTD = embedded(net, weights, inputs)
    if len(net.mixers) > 1:
        x_PBTD = blocks(replace(net, mixers=net.mixers[:-1]), weights, x_PBTD)
    return normed(net, last_block(net, weights), "mixer_norm", x_PBTD)


def last_block(net: Architecture, weights: Lanes) -> Lanes:
    return of_part(weights, f"block{len(net.mixers) - 1}")


def class_means(source: Source, x_PBTD: torch.Tensor, classes_PBT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of each class, [P, C, D], and the share of the variance that lies within classes, [P]; all must occur."""
    member = F.one_hot(classes_PBT.flatten(1), source.classes).to(x_PBTD.dtype)  # [P, B T, C]
    counts_PC = member.sum(1)
    x = x_PBTD.flatten(1, 2)
    means_PCD = member.mT @ x / counts_PC[..., None]
    within = (x - member @ means_PCD).square().sum((1, 2))
    return means_PCD, within / (x - x.mean(1, keepdim=True)).square().sum((1, 2))


def class_scores(net: Architecture, weights: Lanes, means_PCD: torch.Tensor) -> torch.Tensor:
    """s(key, query) between classes, [P, C, C]: the attention logits of the last block."""
    mixer = of_part(last_block(net, weights), "mixer")
    keys, queries = (linear(means_PCD[:, None], mixer, name)[:, 0] for name in ("key", "query"))
    return keys @ queries.mT * (net.width // net.heads) ** -0.5


def imbalance(source: Source, scores_PCC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much a bracket and the one that closes it differ in score, depending on who asks: [P], twice.

    With Delta_p(q) = s(opener of p, q) - s(closer of p, q) for each pair p: the variance of Delta_p over queries q,
    mean over pairs, divided by the variance of s over queries, mean over keys; and the same not divided. 0 in a
    balanced net, whose closed pairs can cancel for every query (arXiv:2312.01429); about 2 for independent scores.
    The scaling is ours. BOS is left out.
    """
    scores = scores_PCC[:, :-1, :-1]
    opener, closer = zip(*source.pairs, strict=True)
    pair = (scores[:, list(opener)] - scores[:, list(closer)]).var(-1, correction=0).mean(1)
    return pair / scores.var(-1, correction=0).mean(1), pair


def stack_likeness(maps_PBTT: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention beyond uniform on the bracket to be closed next, and on all that are still open: [P], twice.

    Mean over positions at which a bracket is open; uniform is 1 / (t + 1) on each of the t brackets and BOS.
    """
    depths, maps = rows.depths, maps_PBTT[:, :, 1:]
    positions = depths.shape[2]
    counted = depths > 0
    uniform = 1 / torch.arange(2, positions + 2, device=depths.device, dtype=maps.dtype)
    on_top = maps.gather(3, rows.openers[..., None] + 1)[..., 0] - uniform
    still = open_brackets(depths)
    on_open = (maps[..., 1:] * still).sum(-1) - depths * uniform
    count_P = counted.sum((1, 2))
    return (on_top * counted).sum((1, 2)) / count_P, (on_open * counted).sum((1, 2)) / count_P


def open_brackets(depths_PBT: torch.Tensor) -> torch.Tensor:
    """Whether the bracket at key k is still open after position q, [P, B, T (q), T (k)].

    It is where k opened (to depth d) and no depth since was below d.
    """
    opened = depths_PBT > F.pad(depths_PBT[:, :, :-1], (1, 0))
    since = [depths_PBT[:, :, key:].cummin(2).values for key in range(depths_PBT.shape[2])]
    lowest = torch.stack([F.pad(depths, (key, 0), value=-1) for key, depths in enumerate(since)], 3)
    return opened[:, :, None] & (lowest >= depths_PBT[:, :, None])


def attention_seen(
    net: Architecture,
    source: Source,
    weights: Lanes,
    inputs: Callable[[Rows], torch.Tensor],
    rows: Rows,
    probe: Rows,
) -> dict[str, torch.Tensor]:
    """What is reported of the last attention, [P, ...]: scores by the classes of `rows`, maps on `probe`."""
    means, within = class_means(source, last_inputs(net, weights, inputs(rows)), source.classes_of(rows))
    scores = class_scores(net, weights, means)
    scaled, unscaled = imbalance(source, scores)
    maps: list[torch.Tensor] = []
    logits(net, weights, inputs(probe), maps)
    attention_PBTT = maps[-1][:, :, 0]
    on_top, on_open = stack_likeness(attention_PBTT, probe)
    return {
        "balance_violation": scaled,
        "pair_score_variance": unscaled,
        "within_class_share": within,
        "attention_on_top": on_top,
        "attention_on_open": on_open,
        "class_scores": scores.flatten(1),
        "probe_attention": attention_PBTT.flatten(1),
    }
