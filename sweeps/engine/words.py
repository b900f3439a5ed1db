"""A command line as a Spec: Hydra composes scale, space and fields; everything unknown or impossible is refused here.

The words are the same for every sweep; `help_text` lists them.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search_spaces import Space, SpaceError, load, parse, resolve
from search_spaces.fields import close_matches, field_comments, field_types, fit
from search_spaces.files import ResolvedSpace, SpaceFile
from sweeps.engine.spec import Search, Spec, named_objectives, seeds
from trainables.study import AnyStudy, FusedStudy

CONF = Path(__file__).parent.parent / "conf"


@dataclass
class Resources:
    """What one job gets: GPUs for each of its workers, how many of these it may go on with when nodes were lost (null:
    all of them, it waits), whether they keep the whole model (ddp) or shard it (fsdp), steps between the checkpoints
    of a long stage, and the lanes of a fused study that train together (null: as many as a short measurement says; 1:
    each alone, which gives device seconds of its own)."""

    gpus: float = 0
    workers: int = 1
    min_workers: int | None = None
    parallel: Any = "ddp"
    checkpoint_every: int | None = None
    pack: int | None = None


@dataclass
class Words:
    """What a command may say, with its defaults; `space` and `study` are the study's own."""

    scale: str = "laptop"
    preset: str = "default"
    proposals: int | None = None
    seeds: int | None = None
    tuning_seeds: int | None = None
    sampler: str | None = None
    bracket: int | None = None
    eta: int = 2
    compare: list[str] | None = None
    objective: Any = None
    sampler_seed: int = 0
    executor: str = "ray"
    cluster: str = "auto"
    slots: int | None = None
    results: str = field(default_factory=lambda: os.environ.get("ANABRANCH_RESULTS") or "results")
    tracking: str | None = field(default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or None)
    plan_only: bool = False
    resources: Resources = field(default_factory=Resources)
    space: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)


ABOUT = {
    "scale": "tiny (seconds), laptop (minutes on 2 cores), gpu (one GPU per job), paper (several)",
    "preset": "a ready-made experiment, listed below",
    "proposals": "how many values of the searched axes, in each tuning cell; default: the whole grid",
    "seeds": "fresh seeds that decide (tuning seeds where a preset has no fresh ones)",
    "tuning_seeds": "seeds that choose configs",
    "sampler": "grid, random, qmc, tpe, gp, nsga2 or cmaes",
    "bracket": "halve: brackets of so many proposals, the best of which go on to the next budget",
    "eta": "halving keeps one in eta at each budget",
    "compare": "axes whose every value is confirmed on fresh seeds, such as [decay_fraction]",
    "objective": "metrics that the search follows, NAME:min or NAME:max; default: the study's select metric",
    "sampler_seed": "seed of the sampler",
    "executor": "ray, or local: this process, without Ray",
    "cluster": "auto joins a running Ray or starts one here; local always starts one; or an address",
    "slots": "jobs at a time; default: one per core, or per GPU that a job needs, of this machine or of the cluster",
    "results": "folder of store, tables, journals and figures; default: $ANABRANCH_RESULTS, else results",
    "tracking": "MLflow server; default: $MLFLOW_TRACKING_URI, else a database in the results folder; none: no mirror",
    "plan_only": "print the plan and stop",
    "resources.workers": "workers of each job, which share its batches; each has resources.gpus GPUs (one or none)",
    "resources.min_workers": "workers that a job may go on with once nodes were lost; default: all, it waits",
    "resources.pack": "lanes of a fused study that train together; default: measured; 1: each alone (new results)",
}


class Refused(ValueError):
    """A command that cannot be honoured; nothing was started."""


def compose_words(study: AnyStudy, arguments: Sequence[str]) -> tuple[Words, SpaceFile, ResolvedSpace]:
    """The words of a command line, with the study's axes and fields in place. Raises Refused."""
    file = load(study.name)
    try:
        overrides = OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise Refused(f"cannot read the command: {str(error).splitlines()[0]}; say WORD=VALUE") from error
    said = {override.key_or_group: override for override in overrides}
    scales = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
    scale = str(said["scale"].value()) if "scale" in said else "laptop"
    preset = str(said["preset"].value()) if "preset" in said else "default"
    if scale not in scales:
        raise Refused(f"no scale {scale!r}{close_matches(scale, scales)}")
    try:
        base = resolve(file, scale, preset)
        base = resolve(
            *(file, scale, preset),
            space_overrides=_space_overrides(overrides, base.axes),
            study_overrides=_study_overrides(overrides, study),
        )
    except SpaceError as error:
        raise Refused(str(error)) from error
    ConfigStore.instance().store(name="words", node=OmegaConf.structured(Words))
    others = [str(o.input_line) for o in overrides if o.key_or_group.split(".")[0] not in ("space", "study")]
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            words = OmegaConf.to_object(compose(config_name="config", overrides=others))
    except (HydraException, OmegaConfBaseException) as error:
        raise Refused(_plainly(error, [str(o.key_or_group) for o in overrides])) from error
    assert isinstance(words, Words)
    words.space, words.study = base.axes, base.study
    return words, file, base


def _study_overrides(overrides: Sequence[Override], study: AnyStudy) -> dict[str, Any]:
    """`study.FIELD=...` as a mapping, lists as tuples."""
    changed = {}
    for override in overrides:
        section, _, name = override.key_or_group.partition(".")
        if section == "study":
            if name not in study.field_names:
                raise Refused(f"{study.name} has no field {name!r}{close_matches(name, study.field_names)}")
            if name == "seed":
                raise Refused("the sweep sets the seed, from tuning and fresh ones; say seeds=N or tuning_seeds=N")
            value = override.value()
            changed[name] = tuple(value) if isinstance(value, list) else value
    return changed


def _space_overrides(overrides: Sequence[Override], axes: Mapping[str, Any]) -> dict[str, Any]:
    """`space.AXIS=...` and `space.AXIS.KEY=...` as one mapping; a new axis needs a plus."""
    changed: dict[str, Any] = {}
    for override in overrides:
        section, *path = override.key_or_group.split(".")
        if section != "space":
            continue
        if not path or len(path) > 2:
            raise Refused(f"say space.AXIS=VALUE or space.AXIS.KEY=VALUE, got {override.input_line}")
        if override.is_delete():
            raise Refused(f"an axis cannot be deleted; pin it with space.{path[0]}=VALUE, got {override.input_line}")
        if path[0] not in axes and not override.is_add():
            meant = close_matches(path[0], list(axes))
            raise Refused(f"{path[0]!r} is no axis of this space; add a new axis with +space.{path[0]}=...{meant}")
        value = override.value()
        if len(path) == 1:
            changed[path[0]] = value
        else:
            part = changed.setdefault(path[0], {})
            if not isinstance(part, dict):
                raise Refused(f"space.{path[0]} is given as a whole and in part; say one of them")
            part[path[1]] = value
    return changed


def make_spec(study: AnyStudy, arguments: Sequence[str], name: str) -> tuple[Spec, Words]:
    """A command line as a Spec. Raises Refused with the rule, the value and the way out."""
    words, _, base = compose_words(study, arguments)
    types = field_types(study.config)
    try:
        axes = dict(words.space)
        base = _typed(study, base)
        found = base.search
        objectives = named_objectives(study, found.get("objective") if words.objective is None else words.objective)
        locates = study.boundary in [objective.name for objective in objectives]
        space = parse(axes, fields=types, conditions=study.conditions, cells=base.cells, locates_boundary=locates)
        budgets = _budgets(study, space)
        tuning, fresh = _seeds(words, base)
        search = Search(
            sampler=words.sampler or found.get("sampler", "grid"),
            proposals=words.proposals if words.proposals is not None else found.get("proposals"),
            bracket=words.bracket if words.bracket is not None else found.get("bracket"),
            eta=words.eta if words.eta != 2 else found.get("eta", 2),
            seed=words.sampler_seed,
            objectives=objectives,
        )
    except ValueError as error:
        raise Refused(str(error)) from error
    compare = tuple(found.get("compare", ()) if words.compare is None else words.compare)
    for axis in compare:
        if axis not in words.space:
            raise Refused(f"compare={axis} is no axis of this space{close_matches(axis, words.space)}")
    compare = tuple(axis for axis in compare if axis not in space.pinned)
    _check(study, words, search, budgets)
    command = f"python sweeps/{name}.py " + shlex.join(arguments)
    return (
        Spec(
            name=name,
            study=study,
            scale=words.scale,
            preset=words.preset,
            command=command.strip(),
            axes=axes,
            space=space,
            resolved=base,
            budgets=budgets,
            tuning_seeds=tuning,
            fresh_seeds=fresh,
            search=search,
            compare=compare,
            results=Path(words.results).expanduser(),
        ),
        words,
    )


def _typed(study: AnyStudy, base: ResolvedSpace) -> ResolvedSpace:
    """The fields that scale, preset and command set, as the config's types hold them."""
    types = field_types(study.config)

    def typed(values: Mapping[str, Any]) -> dict[str, Any]:
        unknown = [name for name in values if name not in types]
        if unknown:
            raise Refused(f"{study.name} has no field {unknown[0]!r}{close_matches(unknown[0], types)}")
        return {name: fit(value, types[name], f"study.{name}") for name, value in values.items()}

    within = {cell: typed(values) for cell, values in base.within.items()}
    return replace(base, study=typed(base.study), within=within)


def _budgets(study: AnyStudy, space: Space) -> tuple[int, ...]:
    if study.budget in space.enumerated:
        budgets = space.enumerated[study.budget]
    elif study.budget in space.pinned:
        budgets = (space.pinned[study.budget],)
    else:
        raise Refused(f"the space needs {study.budget}; say space.{study.budget}=[400,800]")
    if list(budgets) != sorted(set(budgets)):
        raise Refused(f"budgets must increase, got space.{study.budget}={list(budgets)}; sort them and drop repeats")
    return tuple(budgets)


def _seeds(words: Words, base: ResolvedSpace) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tuning, fresh = base.seeds.tuning, base.seeds.fresh
    if words.tuning_seeds is not None:
        tuning = words.tuning_seeds
    if words.seeds is not None:
        tuning, fresh = (tuning, words.seeds) if fresh else (words.seeds, fresh)
    if tuning < 1 or fresh < 0:
        raise Refused(f"a sweep needs at least one tuning seed, got tuning_seeds={tuning}, fresh seeds {fresh}")
    return seeds(tuning, fresh)


def _check(study: AnyStudy, words: Words, search: Search, budgets: Sequence[int]) -> None:
    if words.executor not in ("ray", "local"):
        raise Refused(f"no executor {words.executor!r}; there are ray and local")
    if search.bracket is not None and len(budgets) < 2:
        raise Refused(
            f"bracket={search.bracket} needs at least two budgets, got {list(budgets)}; add one or drop bracket"
        )
    if words.executor == "local" and words.resources.workers > 1:
        raise Refused(
            f"executor=local trains with one worker, got resources.workers={words.resources.workers}; take ray"
        )
    if words.resources.parallel not in ("ddp", "fsdp"):
        raise Refused(f"resources.parallel is ddp or fsdp, got {words.resources.parallel!r}")
    if words.resources.pack is not None and words.resources.pack < 1:
        raise Refused(f"a pack has at least one lane, got resources.pack={words.resources.pack}")
    if isinstance(study, FusedStudy) and words.resources.workers > 1:
        raise Refused(
            f"the lanes of {study.name} train on one worker, got resources.workers={words.resources.workers}; "
            "several GPUs take several jobs: set resources.workers=1"
        )
    if "://" in words.results:
        raise Refused(
            f"results is a folder that every node sees under one path, got {words.results}; object storage cannot "
            "rename a file at once, which the store needs: mount a shared file system and name its folder"
        )
    if words.cluster.startswith("ray://"):
        raise Refused(f"a sweep runs beside Ray, not through its client, got cluster={words.cluster}; ray submit it")
    if words.slots is not None and words.slots < 1:
        raise Refused(f"slots must be at least 1, got {words.slots}")


def _plainly(error: Exception, keys: Sequence[str]) -> str:
    """Hydra's complaint in our words, with what there is."""
    text = f"{error}\n{error.__cause__ or ''}"
    for key in keys:
        section = key.split(".")[0]
        if section not in [item.name for item in fields(Words)]:
            return f"no word {key!r}{close_matches(key, [item.name for item in fields(Words)])}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line]
    return "; ".join(dict.fromkeys(line for line in lines if "object_type" not in line))


def help_text(study: AnyStudy, name: str, question: str) -> str:
    """Words, defaults, axes with ranges, and presets."""
    words, file, base = compose_words(study, [])
    space = parse(words.space, fields=field_types(study.config), conditions=study.conditions, cells=base.cells)
    defaults = Words()
    lines = [question.strip(), "", f"python sweeps/{name}.py [WORD=VALUE ...]", "", "Words"]
    lines += [f"  {word:<14} {attrgetter(word)(defaults)!s:<9} {about}" for word, about in ABOUT.items()]
    lines += [
        "  space.AXIS                pin (=3e-3), enumerate (=[1e-3,3e-3]) or change an axis (.high=0.03, .points=5)",
        "  +space.AXIS               a new axis: a value, a list, or {low:..., high:..., log:true, points:4}",
        "  study.FIELD               any other field of the config",
        "",
        "Axes at scale=laptop",
    ]
    for row in space.describe(field_comments(study.config)):
        lines.append(f"  {row.axis:<16} {row.kind:<11} {row.range:<44} {row.comment}".rstrip())
    lines += ["", "Fields (study.FIELD=...)"]
    for item in fields(study.config):
        if item.name not in words.space and item.name != "seed":
            about = field_comments(study.config).get(item.name, "")
            value = words.study.get(item.name, item.default)
            lines.append(f"  {item.name:<20} {value!s:<10} {about}".rstrip())
    lines += ["", "Presets"]
    for preset, layer in file.presets.items():
        at = f" [scale={' or '.join(layer.at)}]" if layer.at else ""
        lines.append(f"  {preset:<26} {layer.about}{at}")
    lines += ["", "Scales"]
    lines += [f"  {scale:<8} {layer.about}" for scale, layer in file.scales.items()]
    return "\n".join(lines)


def default_slots(words: Words, gpus: float) -> int:
    """Jobs at a time in this process' machine: one per core, or as many as there are GPUs for."""
    if words.slots is not None:
        return words.slots
    if words.resources.gpus:
        return max(1, int(gpus // (words.resources.gpus * words.resources.workers)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // words.resources.workers)
