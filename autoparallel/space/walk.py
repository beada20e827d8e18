"""The walk: axis by axis, illegal rows counted with all they stand for, the rest multiplied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoparallel.framework import Framework
from autoparallel.hardware import Cluster
from autoparallel.layout import KNOB_FIELDS, Choices, Knobs, Part, Product
from autoparallel.layout.distinct import combinations
from autoparallel.model import Model
from autoparallel.rules import RULES, Limits, RuleCase, first_broken, limits
from autoparallel.rules.case import one_row
from autoparallel.space.axes import AXES, Job, Mesh, Options, Row, decided, meshes
from autoparallel.space.spec import SpaceSpec

BLOCK_ROWS = 65_536
"""Rows built at a time: many that share a result, and a space of any size in bounded memory."""

FUSED = 4
"""Axes after the mesh whose choices become one table on the way: later axes multiply its rows."""


class Workload(Protocol):
    """What a space needs to know of a job; a `TrainingRequest` is one."""

    @property
    def num_gpus(self) -> int:
        """GPUs of the job."""

    @property
    def global_batch_size(self) -> int:
        """Sequences a step."""

    @property
    def seq_length(self) -> int:
        """Tokens a sequence."""

    @property
    def precision(self) -> str:
        """What `precision: auto` stands for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """All legal candidates of a case, and how many broke which rule first."""

    knobs: Knobs
    considered: int
    pruned: dict[str, int]

    @property
    def legal(self) -> int:
        """Number of candidates."""
        return self.knobs.size


def candidates(
    spec: SpaceSpec, model: Model, cluster: Cluster, framework: Framework, workload: Workload
) -> Space:
    """Every legal candidate of `spec` for this job, as columns.

    For spaces of tens of millions iterate over `Candidates` instead, which holds a block at a time.
    """
    walk = Candidates(spec, model, cluster, framework, workload)
    blocks = list(walk)
    columns: dict[str, Any] = {
        f.name: np.concatenate([np.empty(0), *(_column(block, f.name) for block in blocks)])
        for f in KNOB_FIELDS
    }
    knobs = Knobs(**columns, stage_table=walk.stage_table)
    return Space(knobs=knobs, considered=walk.considered, pruned=dict(walk.pruned))


def _column(block: Knobs, name: str) -> NDArray[np.float64]:
    return np.broadcast_to(getattr(block, name), (block.size,))


@dataclass(slots=True)
class _Step:
    """Options of one axis for every state that reaches it, flattened.

    A state is what later axes read of a row; rows of one state have the same options.

    Attributes:
        choices: Values of the axis's knobs, a row each different option.
        row: Which of the choices an option is.
        child: The state that an option leads to.
        first, count: Where a state's options begin, and how many they are.
    """

    choices: Choices
    row: NDArray[np.intp]
    child: NDArray[np.intp]
    first: NDArray[np.intp]
    count: NDArray[np.intp]
    below: list[int] = field(default_factory=list)
    """Combinations that a row of each state stands for, from this axis on."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows on their way.

    Attributes:
        parts: The choice on every axis so far, mesh first, of the rows that these come from.
        parent: Which of those rows each row comes from; None where they are the same.
        newest: The choice on the newest axis; None where it is among the parts.
        state: What later axes know of each row.
    """

    parts: tuple[Part, ...]
    state: NDArray[np.intp]
    parent: NDArray[np.intp] | None = None
    newest: Part | None = None

    def keep(self, index: NDArray[np.intp]) -> _Table:
        """Some of the rows."""
        if self.parent is None or self.newest is None:
            return _Table(tuple(_rows(part, index) for part in self.parts), self.state[index])
        newest = _rows(self.newest, index)
        return _Table(self.parts, self.state.take(index), self.parent.take(index), newest)

    def whole(self) -> _Table:
        """The same rows with the choices on all axes in their columns."""
        if self.parent is None or self.newest is None:
            return self
        return _Table((*(_rows(p, self.parent) for p in self.parts), self.newest), self.state)

    def fused(self) -> _Table:
        """The same rows, a choice each of one table."""
        one = Part(Choices.fused(self.parts), np.arange(len(self.state)))
        return _Table((one,), self.state)

    def slice(self, start: int, stop: int) -> _Table:
        """Rows next to each other, of a whole table."""
        parts = (Part(part.choices, part.index[start:stop]) for part in self.parts)
        return _Table(tuple(parts), self.state[start:stop])

    def seen(self) -> tuple[Part, ...]:
        """The rows as parts of a product; a column is made when it is looked at."""
        if self.parent is None or self.newest is None:
            return self.parts
        return (*(part.at(self.parent) for part in self.parts), self.newest)


def _rows(part: Part, index: NDArray[np.intp]) -> Part:
    return Part(part.choices, part.index.take(index))


class Candidates:
    """The legal candidates of a job in blocks of about `BLOCK_ROWS` rows.

    `considered` is known at once; `pruned` counts per rule and is complete after an iteration,
    which starts it afresh.
    """

    def __init__(
        self,
        spec: SpaceSpec,
        model: Model,
        cluster: Cluster,
        framework: Framework,
        workload: Workload,
    ) -> None:
        self._job = Job(
            spec=spec,
            model=model,
            shape=model.shape(workload.seq_length),
            cluster=cluster,
            framework=framework,
            num_gpus=workload.num_gpus,
            global_batch_size=workload.global_batch_size,
            precision=workload.precision,
        )
        self._limits = limits(cluster, framework)
        self._rules = _rules_by_step(self._limits)
        self._reads: list[set[str]] = [set() for _ in self._rules]
        self.stage_table = tuple(self._job.stage_index)
        mesh = meshes(self._job)
        names, states, self._root = _mesh_states(self._job, mesh)
        self._steps = _steps(self._job, names, states)
        self._mesh = Choices(mesh)
        below = self._steps[0].below
        self.considered = sum(below[state] for state in self._root.tolist())
        self.pruned: Counter[str] = Counter()
        self._witnesses: dict[str, RuleCase] = {}

    def example(self, rule_id: str) -> str:
        """What the rule says of the first candidate it removed; empty when it removed none."""
        if (case := self._witnesses.get(rule_id)) is None:
            return ""
        rule = next(rule for rule in RULES if rule.id == rule_id)
        return f"{rule.fields[0]}: {rule.message(case)}"

    def __iter__(self) -> Iterator[Knobs]:
        self.pruned.clear()
        waiting: list[_Table] = []
        start = _Table((Part(self._mesh, np.arange(len(self._root))),), self._root)
        for table in self._walk(0, start):
            if waiting and waiting[0].parts[0].choices is not table.parts[0].choices:
                yield self._knobs(_joined(waiting), compact=True)
                waiting = []
            waiting.append(table)
            if sum(len(part.state) for part in waiting) >= BLOCK_ROWS:
                yield self._knobs(_joined(waiting), compact=True)
                waiting = []
        if waiting:
            yield self._knobs(_joined(waiting), compact=True)

    def _walk(self, step: int, table: _Table) -> Iterator[_Table]:
        """Keep the legal rows of `table`, and multiply them by the axes from `step` on."""
        table = self._keep(step, table).whole()
        if not len(table.state):
            return
        if step == len(self._steps):
            yield table
            return
        if step == FUSED:
            table = table.fused()
        for part in _parts(table, self._steps[step]):
            yield from self._walk(step + 1, _expanded(part, self._steps[step]))

    def _keep(self, step: int, table: _Table) -> _Table:
        """The rows that no rule decidable here excludes; the others are counted."""
        if not self._rules[step]:
            return table
        knobs = self._knobs(table)
        reason = self._reasons(step, knobs)
        lost = reason >= 0
        if not lost.any():
            return table
        found, state = reason[lost], table.state[lost]
        self._count(step, found, state)
        for index in np.flatnonzero(np.bincount(found)).tolist():
            if (rule := RULES[index].id) not in self._witnesses:
                case = RuleCase(model=self._job.shape, knobs=knobs, limits=self._limits)
                self._witnesses[rule] = one_row(case, int(np.argmax(reason == index)))
        return table.keep(np.flatnonzero(~lost))

    def _reasons(self, step: int, knobs: Product) -> NDArray[np.int16]:
        """Per row the first rule of this step that it breaks, else -1.

        Rules are asked of one row of each combination of the knobs they read, noted as they do.
        """
        reads = self._reads[step]
        while True:
            first, own = combinations(knobs.coded(reads))
            few = knobs.at(first)
            case = RuleCase(model=self._job.shape, knobs=few, limits=self._limits)
            reason = first_broken(case, self._rules[step])
            if few.read <= reads:
                return reason.take(own) if len(own) else np.repeat(reason, knobs.size)
            reads |= few.read

    def _count(self, step: int, reason: NDArray[np.int16], state: NDArray[np.intp]) -> None:
        states = int(state.max()) + 1
        times = np.bincount(reason * states + state)
        below = self._steps[step].below if step < len(self._steps) else None
        for pair in np.flatnonzero(times).tolist():
            rule, where = divmod(pair, states)
            self.pruned[RULES[rule].id] += int(times[pair]) * (below[where] if below else 1)

    def _knobs(self, table: _Table, compact: bool = False) -> Product:
        """The rows as knobs; those of later axes are NaN, which no rule applied so far reads."""
        parts = table.seen()
        return Product(
            [part.compact() for part in parts] if compact else parts,
            len(table.state),
            num_gpus=self._job.num_gpus,
            global_batch_size=self._job.global_batch_size,
            stage_table=self.stage_table,
        )


def _rules_by_step(to: Limits) -> list[list[int]]:
    steps: list[list[int]] = [[] for _ in range(len(AXES) + 1)]
    for index, rule in enumerate(RULES):
        if rule.applies(to):
            steps[decided(rule.fields)].append(index)
    return steps


def _later_reads(step: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for axis in AXES[step:] for name in axis.reads))


def _mesh_states(job: Job, mesh: Mesh) -> tuple[tuple[str, ...], list[Row], NDArray[np.intp]]:
    """What later axes read of a mesh, as finely as the spec needs it; and each mesh's state."""
    tp, pp, cp = mesh["tp"], mesh["pp"], mesh["cp"]
    dp = job.num_gpus / (tp * pp * cp)
    replicas = dp * cp
    expert_replicas = replicas * tp / (mesh["etp"] * mesh["ep"])
    exact_groups = "auto" in job.spec.microbatch_group_size_per_vp_stage
    exact_shards = "auto" in job.spec.shard_group_size
    moe = bool(job.model.num_moe_experts)
    features = {
        "dp": dp if exact_groups else np.zeros_like(dp),
        "pp": pp,
        "many_tp": np.asarray(tp > 1, np.float64),
        "replicas": replicas if exact_shards else 1.0 + (replicas > 1),
        "expert_replicas": 1.0 + ((expert_replicas > 1) & moe),
        "many_ep": np.asarray(mesh["ep"] > 1, np.float64),
    }
    rows = np.stack(list(features.values()), axis=1)
    states, state = np.unique(rows, axis=0, return_inverse=True)
    return tuple(features), [tuple(row) for row in states.tolist()], state.reshape(-1)


def _steps(job: Job, names: tuple[str, ...], states: list[Row]) -> list[_Step]:
    """The options of every axis for every state, and how much each state stands for."""
    steps: list[_Step] = []
    for number, axis in enumerate(AXES):
        later = _later_reads(number + 1)
        children: dict[Row, int] = {}
        choices: dict[Row, int] = {}
        offered: dict[Row, Options] = {}
        rows, child, count = [], [], []
        for state in states:
            known = dict(zip(names, state, strict=True))
            given = tuple(known[name] for name in axis.reads)
            if given not in offered:
                offered[given] = axis.options(job, *given)
            for row, features in offered[given]:
                after = known | features
                key = tuple(after.get(name, 0.0) for name in later)
                rows.append(choices.setdefault(row, len(choices)))
                child.append(children.setdefault(key, len(children)))
            count.append(len(offered[given]))
        counts = np.array(count, dtype=np.intp)
        values = np.array(list(choices), dtype=np.float64).reshape(len(choices), len(axis.sets))
        steps.append(
            _Step(
                choices=Choices(dict(zip(axis.sets, values.T.copy(), strict=True))),
                row=np.array(rows, dtype=np.intp),
                child=np.array(child, dtype=np.intp),
                first=np.cumsum(counts) - counts,
                count=counts,
            )
        )
        names, states = later, list(children)
    _fill_below(steps)
    return steps


def _fill_below(steps: list[_Step]) -> None:
    after: list[int] = []
    for step in reversed(steps):
        each = [after[c] for c in step.child.tolist()] if after else [1] * len(step.child)
        sums = np.concatenate([[0], np.cumsum(np.array(each, dtype=object))])
        step.below = [
            int(sums[f + n] - sums[f]) for f, n in zip(step.first, step.count, strict=True)
        ]
        after = step.below


def _parts(table: _Table, step: _Step) -> Iterator[_Table]:
    """`table` in slices whose expansion has about `BLOCK_ROWS` rows."""
    ends = np.cumsum(step.count[table.state])
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + BLOCK_ROWS, side="right")), start + 1)
        yield table.slice(start, stop)
        start = stop


def _expanded(table: _Table, step: _Step) -> _Table:
    """Every row times the options of its state."""
    count = step.count[table.state]
    parent = np.repeat(np.arange(len(count)), count)
    starts = np.cumsum(count) - count
    option = np.arange(len(parent)) + (step.first[table.state] - starts).take(parent)
    newest = Part(step.choices, step.row.take(option))
    return _Table(table.parts, step.child.take(option), parent, newest)


def _joined(tables: list[_Table]) -> _Table:
    if len(tables) == 1:
        return tables[0]
    columns = zip(*(table.parts for table in tables), strict=True)
    return _Table(
        tuple(Part(p[0].choices, np.concatenate([one.index for one in p])) for p in columns),
        np.concatenate([table.state for table in tables]),
    )
