"""Brackets against a parser and enumerated strings; measures against loops, hand-made attention and the net's own."""

from dataclasses import replace
from itertools import product
from math import log, prod, sqrt

import numpy as np
import pytest
import torch

from search_spaces import load, parse, resolve
from search_spaces.fields import field_types
from trainables import dyck
from trainables.common.dyck import measures, partial
from trainables.common.dyck.source import Source
from trainables.common.sequence.network import initial, logits
from trainables.common.streams import Streams
from trainables.dyck import Config, Measurements, Training
from trainables.pack import train_pack
from trainables.study import LocalRun

CPU = torch.device("cpu")
SOURCE = Source(kinds=2, depth=3)
SMALL = replace(dyck.STUDY.tiny, depth=2, budget_steps=150, measure_every=75, learning_rate=0.02, batch_size=32)


def drawn(source=SOURCE, brackets=20, rows=200, rate=0.4, lanes=2, prefix=0):
    rates = torch.full((lanes,), rate)
    chances = torch.cat([source.closed_chances(rates, prefix), source.chances(rates, brackets)], 1)
    return source.drawn(chances, Streams(range(lanes), "test"), 3, rows)


def parsed(tokens, kinds):
    """Open brackets as (kind, place) after each token of a string; raises where one closes that may not."""
    stack, after = [], []
    for place, token in enumerate(tokens):
        if token < kinds:
            stack = [*stack, (token, place)]
        else:
            assert stack and stack[-1][0] == token - kinds, f"{tokens[: place + 1]} closes what is not open"
            stack = stack[:-1]
        after.append(stack)
    return after


def chance_of(tokens, source, rate):
    """Chance of a string by the rules of the source; 0 where it is none of the language."""
    chance, stack = 1.0, []
    for token in tokens:
        opens = token < source.kinds
        p = 1.0 if not stack else 0.0 if len(stack) == source.depth else rate
        if opens:
            chance *= p / source.kinds
            stack.append(token)
        elif stack and stack[-1] == token - source.kinds:
            chance *= 1 - p
            stack.pop()
        else:
            return 0.0
    return chance


def language(source, brackets, rate):
    strings = product(range(2 * source.kinds), repeat=brackets)
    found = {tokens: chance_of(tokens, source, rate) for tokens in strings}
    return {tokens: chance for tokens, chance in found.items() if chance > 0}


def test_rows_are_strings_of_the_language_with_what_a_parser_finds_in_them():
    for source in (SOURCE, Source(3, 1), Source(1, 5)):
        rows = drawn(source)
        for lane in range(2):
            for row in range(50):
                tokens = rows.tokens[lane, row].tolist()
                after = parsed(tokens, source.kinds)
                assert rows.depths[lane, row].tolist() == [len(stack) for stack in after]
                assert max(map(len, after)) <= source.depth
                for place, stack in enumerate(after):
                    if stack:
                        found = int(rows.needed[lane, row, place]), int(rows.openers[lane, row, place])
                        assert found == stack[-1]


def test_strings_come_as_often_as_their_chances_say():
    chances, count = language(SOURCE, 4, 0.4), 40_000
    assert sum(chances.values()) == pytest.approx(1)
    rows = drawn(brackets=4, rows=count, lanes=1).tokens[0].tolist()
    for tokens, chance in chances.items():
        spread = sqrt(chance * (1 - chance) * count)
        assert abs(rows.count(list(tokens)) - chance * count) < 5 * spread


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_closed_prefixes_have_the_chances_of_strings_that_come_home(rate):
    source = Source(1, 2)
    closed = {tokens: p for tokens, p in language(source, 8, rate).items() if not parsed(tokens, 1)[-1]}
    chances = source.closed_chances(torch.tensor([rate], dtype=torch.float64), 8)[0]
    for tokens, chance in closed.items():
        depths = [0, *(len(stack) for stack in parsed(tokens, 1))]
        ours = prod(
            float(chances[at, depth]) if token == 0 else 1 - float(chances[at, depth])
            for at, (token, depth) in enumerate(zip(tokens, depths, strict=False))
        )
        assert ours == pytest.approx(chance / sum(closed.values()))
    rows = drawn(prefix=8, brackets=6)
    assert (rows.depths[:, :, 7] == 0).all() and (rows.depths[:, :, 8] == 1).all()
    cut = dyck.without_prefix(rows, 8)
    for tokens, openers, depths in zip(cut.tokens[0].tolist(), cut.openers[0], cut.depths[0], strict=True):
        after = parsed(tokens, 2)
        assert [stack[-1][1] for stack in after if stack] == openers[depths > 0].tolist()
    with pytest.raises(ValueError, match="even number"):
        SOURCE.closed_chances(torch.tensor([0.5]), 3)


def test_entropy_and_next_chances_are_those_of_all_strings():
    chances = language(SOURCE, 5, 0.3)
    assert SOURCE.entropy(0.3, 5) == pytest.approx(-sum(p * log(p) for p in chances.values()) / 5)
    rows = drawn(rate=0.3, brackets=5)
    following = SOURCE.next_chances(rows, 0.3)
    torch.testing.assert_close(following.sum(-1), torch.ones(2, 200, 6))
    along = following[:, :, :-1].gather(3, rows.tokens[..., None])[..., 0].prod(2)
    for tokens, chance in zip(rows.tokens[1].tolist(), along[1].tolist(), strict=True):
        assert chance == pytest.approx(chances[tuple(tokens)], rel=1e-5)


def test_classes_and_features_are_token_and_depth():
    rows = drawn()
    classes = SOURCE.classes_of(rows)
    seen = {}
    for name, token, depth in zip(
        classes[:, :, 1:].flatten().tolist(),
        rows.tokens.flatten().tolist(),
        rows.depths.flatten().tolist(),
        strict=True,
    ):
        assert seen.setdefault(name, (token, depth)) == (token, depth)
    assert len(set(seen.values())) == len(seen) == SOURCE.classes - 1 and (classes[:, :, 0] == len(seen)).all()
    features = SOURCE.features("trigonometric")
    for name, (token, depth) in seen.items():
        angle = np.arctan(depth / (SOURCE.depth + 2 - depth))
        expected = [*(float(token == one) for one in range(5)), np.cos(angle), np.sin(angle)]
        assert features[name].tolist() == pytest.approx(expected)
    assert features[-1].tolist() == [0, 0, 0, 0, 1, 1, 0]
    pairs = {(seen[opener], seen[closer]) for opener, closer in SOURCE.pairs}
    assert pairs == {((kind, depth), (2 + kind, depth - 1)) for kind in (0, 1) for depth in (1, 2, 3)}


def test_accuracy_counts_open_positions_between_two_lengths():
    right = torch.tensor([[[1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]]], dtype=torch.bool)
    counted = torch.tensor([[[1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1]]], dtype=torch.bool)
    first, second = measures.closing_accuracy(right, counted, (2, 5))
    assert (float(first), float(second)) == pytest.approx((2 / 3, 3 / 5))
    rows = drawn(brackets=3, rows=4, lanes=1)
    perfect = SOURCE.next_chances(rows, 0.4).log()
    assert measures.closes_right(SOURCE, perfect, rows)[0][rows.depths > 0].all()
    assert float(measures.divergence(perfect.clamp_min(-1e9), perfect.exp())) == pytest.approx(0, abs=1e-6)


def test_divergence_of_a_guess_is_its_cross_entropy_less_the_entropy():
    rows = drawn(brackets=4, rows=20_000, lanes=1)
    guess = torch.zeros(1, 20_000, 4, 5)
    ours = measures.divergence(guess, SOURCE.next_chances(rows, 0.4)[:, :, :-1])
    assert float(ours) == pytest.approx(log(5) - SOURCE.entropy(0.4, 4), abs=0.01)


def test_imbalance_is_that_of_loops_two_for_chance_and_zero_for_equal_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, SOURCE.classes, SOURCE.classes, generator=generator, dtype=torch.float64)
    scaled, pair = measures.imbalance(SOURCE, scores)
    s = scores[1].numpy()[:-1, :-1]
    differences = [np.var([s[o, q] - s[c, q] for q in range(len(s))]) for o, c in SOURCE.pairs]
    assert float(pair[1]) == pytest.approx(np.mean(differences))
    assert float(scaled[1]) == pytest.approx(np.mean(differences) / np.mean([np.var(s[k]) for k in range(len(s))]))
    many = torch.randn(400, SOURCE.classes, SOURCE.classes, generator=generator)
    assert float(measures.imbalance(SOURCE, many)[0].mean()) == pytest.approx(2, abs=0.05)
    for opener, closer in SOURCE.pairs:
        scores[:, closer] = scores[:, opener] + 0.7
    torch.testing.assert_close(measures.imbalance(SOURCE, scores)[0], torch.zeros(2, dtype=torch.float64))


def test_scores_between_classes_are_the_logits_of_the_nets_own_attention():
    config = replace(SMALL, depth=3)
    training = Training([config, replace(config, seed=5)], CPU)
    rows = drawn(brackets=12, rows=30)
    classes = config.source.classes_of(rows)
    weights, inputs = training.parts.free, training.inputs(rows)
    means, within = measures.class_means(config.source, measures.last_inputs(config.net, weights, inputs), classes)
    torch.testing.assert_close(within, torch.zeros(2), atol=1e-5, rtol=0)
    scores = measures.class_scores(config.net, weights, means)
    maps = []
    logits(config.net, weights, inputs, maps)
    logs = maps[0][:, :, 0].log()
    for lane, row, query, key in product((0, 1), (0, 7), (5, 12), (1, 4)):
        at, other, asks = (int(classes[lane, row, place]) for place in (key, 0, query))
        expected = logs[lane, row, query, key] - logs[lane, row, query, 0]
        assert float(scores[lane, at, asks] - scores[lane, other, asks]) == pytest.approx(float(expected), abs=1e-4)


def test_within_class_share_is_one_for_what_does_not_depend_on_the_class():
    rows = drawn(rows=400)
    noise = torch.randn(2, 400, 21, 6, generator=torch.Generator().manual_seed(1))
    assert measures.class_means(SOURCE, noise, SOURCE.classes_of(rows))[1].tolist() == pytest.approx([1, 1], abs=0.01)


def test_rows_in_which_something_never_occurs_are_refused_before_training():
    for changes, words in (
        ({"depth": 6, "evaluation_rows": 4}, "classes of brackets do not occur in the rows"),
        ({"depth": 1, "length": 3, "ood_lengths": (4, 24)}, "no bracket is open at places 4 to 4"),
    ):
        run = LocalRun()
        with pytest.raises(ValueError, match=words):
            dyck.train([replace(SMALL, **changes)], run)
        assert not run.rows


def test_stack_likeness_is_attention_beyond_uniform_on_what_a_parser_finds_open():
    rows = drawn(brackets=8, rows=6, lanes=1)
    generator = torch.Generator().manual_seed(2)
    maps = torch.rand(1, 6, 9, 9, generator=generator).tril()
    maps = maps / maps.sum(-1, keepdim=True)
    top, still = [], []
    for row in range(6):
        for place, stack in enumerate(parsed(rows.tokens[0, row].tolist(), 2)):
            if stack:
                seen = [float(maps[0, row, place + 1, opener + 1]) for _, opener in stack]
                top.append(seen[-1] - 1 / (place + 2))
                still.append(sum(seen) - len(stack) / (place + 2))
    on_top, on_open = measures.stack_likeness(maps, rows)
    assert (float(on_top), float(on_open)) == pytest.approx((np.mean(top), np.mean(still)), abs=1e-6)
    uniform = torch.ones(1, 6, 9, 9).tril()
    for value in measures.stack_likeness(uniform / uniform.sum(-1, keepdim=True), rows):
        assert float(value) == pytest.approx(0, abs=1e-6)


def test_a_frozen_map_is_balanced_has_the_asked_spread_and_stays():
    for layer in ("onehot", "trigonometric"):
        configs = [replace(SMALL, trains="around_map", score_spread=s, first_layer=layer, seed=4) for s in (1.0, 2.5)]
        training = Training(configs, CPU)
        before = {name: value.clone() for name, value in training.parts.fixed.items()}
        net, source = configs[0].net, configs[0].source
        weights = training.parts.weights(training.parts.free)
        every = configs[0].features_of_classes(CPU).expand(2, 1, -1, -1)
        scores = measures.class_scores(net, weights, measures.last_inputs(net, weights, every)[:, 0])
        spread = scores[:, :-1, :-1].var(-1, correction=0).mean(1).sqrt()
        torch.testing.assert_close(spread, torch.tensor([1.0, 2.5]), rtol=1e-4, atol=0)
        torch.testing.assert_close(measures.imbalance(source, scores)[0], torch.zeros(2), atol=1e-8, rtol=0)
        for _ in range(3):
            training.step()
        assert set(training.parts.fixed) | set(training.parts.free) == set(net.shapes)
        assert not set(training.parts.fixed) & set(training.parts.free)
        assert all(torch.equal(before[name], training.parts.fixed[name]) for name in before)
        assert {"input", "block0.mixer.query", "block0.mixer.key", "block0.mixer_norm.gain"} <= set(before)


def test_masks_keep_the_largest_scores_and_pass_the_gradient_of_the_weights():
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    keep = torch.tensor([0.1, 0.5, 0.9])
    chosen = partial.mask(scores.detach(), keep)
    for lane, count in enumerate((2, 10, 18)):
        kept = set(np.argsort(-scores[lane].detach().numpy().ravel())[:count].tolist())
        assert set(chosen[lane].flatten().nonzero()[:, 0].tolist()) == kept
    weights = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(4))
    passed = partial.passed(scores, keep)
    torch.testing.assert_close(passed.detach(), chosen)
    (weights * passed).square().sum().backward()
    torch.testing.assert_close(scores.grad, 2 * weights**2 * chosen)


def test_masked_nets_share_their_random_net_and_differ_in_their_scores():
    masked = replace(SMALL, trains="mask", keep_rate=0.5, network_seed=9)
    training = Training([masked, replace(masked, seed=1), replace(masked, network_seed=8)], CPU)
    name = "block0.mixer.query"
    fixed = training.parts.fixed[name].clone()
    assert torch.equal(fixed[0], fixed[1]) and not torch.equal(fixed[0], fixed[2])
    assert not torch.equal(training.parts.free[name][0], training.parts.free[name][1])
    assert fixed.abs().unique().numel() == 1 and training.parts.free.keys() == {
        n for n, s in masked.net.shapes.items() if len(s) == 2
    }
    before = training.parts.free[name].clone()
    training.step()
    assert torch.equal(training.parts.fixed[name], fixed) and not torch.equal(training.parts.free[name], before)


def test_contrast_is_the_squared_change_of_the_logits_and_its_control_trains_on_the_same_rows():
    config = replace(SMALL, depth=3, prefix_length=6)
    configs = [replace(config, contrast=value) for value in (0.25, 1.0)]
    training, control = Training(configs, CPU), Training([config], CPU)
    rows = config.source.drawn(training.chances, training.streams, 5, 4)
    same = config.source.drawn(control.chances, control.streams, 5, 4)
    assert torch.equal(rows.tokens[:1], same.tokens) and rows.tokens.shape == (2, 4, 6 + config.length)
    weights = initial(config.net, [0, 0])
    features = torch.eye(config.source.classes)
    table = config.source.classes_of(rows)[0]
    change = 0.0
    for row in range(4):
        whole = logits(config.net, weights, features[table[row, :-1]].expand(2, 1, -1, -1))[0, 0]
        tail = torch.cat([table[row, :1], table[row, 7:-1]])
        alone = logits(config.net, weights, features[tail].expand(2, 1, -1, -1))[0, 0]
        change += float((whole[6:] - alone).square().sum(-1).mean()) / 4
    plain = control.losses({name: value[:1] for name, value in weights.items()}, same)
    assert training.losses(weights, rows).tolist() == pytest.approx(
        [float(plain) + lam * change for lam in (0.25, 1)], rel=1e-4
    )


def ended(*configs):
    stages = {}
    train_pack(dyck.STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    assert not any(stage.error for stage in stages.values()), [stage.error for stage in stages.values()]
    return [stages[lane].rows[-1] for lane in range(len(configs))]


def test_trained_nets_close_nearly_all_and_their_probe_rows_are_the_same():
    first, second = ended(SMALL, replace(SMALL, seed=1))
    for row in (first, second):
        assert row.metrics["report/accuracy_12"] > 0.99 and row.metrics["report/excess_loss"] < 0.05
        assert row.metrics["report/ood_error"] == pytest.approx(1 - row.metrics["report/accuracy_24"])
        maps = np.reshape(row.arrays["report/probe_attention"], (2, 8, 8))
        assert np.allclose(maps.sum(-1), 1, atol=1e-5) and np.triu(maps, 1).max() == 0
    assert first.arrays["report/probe_tokens"] == second.arrays["report/probe_tokens"]
    assert first.arrays["report/probe_attention"] != second.arrays["report/probe_attention"]


def test_what_selects_and_what_reports_are_different_rows():
    looks = Measurements(Training([SMALL], CPU))
    select, report = ({tuple(row) for row in rows.tokens[0].tolist()} for rows in (looks.select, looks.report))
    assert len(select) == len(report) == SMALL.evaluation_rows and not select & report


REFUSED = [
    ({"open_rate": 1.0}, r"must be in \(0, 1\)"),
    ({"ood_lengths": (16, 14)}, "increasing and beyond length"),
    ({"prefix_length": 3}, "must be even"),
    ({"prefix_length": 14}, "no longer than the last of ood_lengths, 24, got 14"),
    ({"contrast": 0.1}, "needs prefix_length of 2 or more"),
    ({"keep_rate": 1.0}, r"keep_rate in \(0, 1\)"),
    ({"trains": "around_map", "score_spread": 1.0, "first_layer": "learned"}, "inputs that are their class alone"),
    ({"trains": "around_map", "score_spread": 1.0, "width": 4}, "width above kinds \\* depth"),
    ({"learning_rate": 0.0}, "learning_rate above 0"),
    ({"probe_length": 25}, "probe_length must be at most 24"),
    ({"depth": 0}, "kinds and depth of at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=str)
def test_what_cannot_be_honoured_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_every_value_of_the_space_is_one_that_a_config_honours():
    file = load("dyck")
    for scale in file.scales:
        for preset in file.presets_at(scale):
            resolved = resolve(file, scale, preset)
            space = parse(
                resolved.axes, fields=field_types(Config), conditions=dyck.STUDY.conditions, cells=resolved.cells
            )
            for values in product(*space.enumerated.values()):
                rest = dict(zip(space.enumerated, values, strict=True)) | dict(space.pinned) | resolved.study
                rest = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
                points = space.grid() if resolved.search.get("sampler", "grid") == "grid" else [{}]
                for point in points:
                    config = Config(**rest, **point)
                    assert dyck.STUDY.units(config)["flops"] > 0 and hash(dyck.shape(config))
