"""Memory of one rank at its peak, by cause, and the probability that it fits.

States are in `memory_states`, activations in `activations`, the rest in `memory_buffers`; here they
meet on a stage of the pipeline. What accounting cannot derive sits in `MemoryConstants`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from autoparallel.constants import MemoryConstants
from autoparallel.cost.activations import (
    cached_score_bytes,
    layer_backward_bytes,
    saved_layer_bytes,
)
from autoparallel.cost.case import Case, flag
from autoparallel.cost.compute import HALF_BYTES, tokens
from autoparallel.cost.memory_buffers import logits_bytes, staging_bytes, unsharded_bytes
from autoparallel.cost.memory_states import static_bytes
from autoparallel.cost.partition import chunks, rank_parameters, single_stage
from autoparallel.cost.schedule import in_flight
from autoparallel.cost.unique import assembled, kept_per_combination, per_combination
from autoparallel.units import Num

STAGES = ("first", "middle", "last")
COMMUNICATOR_BYTES = 0.36e9
"""NCCL buffers of one communicator, about 342 MiB for 2 GPUs (392 MiB for 4 to 8).

Source: ai-dynamo/aiconfigurator `h100_sxm.yaml`.
"""
HELD_LIMIT = 0.85
"""Share of the device up to which the allocator keeps what it does not need, instead of asking for
it back."""
LOGISTIC_SLOPE = 1.702
"""Slope at which the logistic curve is the normal distribution within 0.01."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """Bytes of one rank at its peak, by cause; scalars or [N]."""

    weights_bytes: Num
    gradients_bytes: Num
    optimizer_bytes: Num
    activations_bytes: Num
    logits_bytes: Num
    buffers_bytes: Num
    context_bytes: Num
    fragmentation_bytes: Num
    held_bytes: Num
    """Freed, but in use by a communication stream, and kept while there is room."""
    late_bytes: Num = 0.0
    """What of that would not be given back in time where there is none: no part of the total."""

    @property
    def allocated_bytes(self) -> Num:
        """What tensors hold: torch's `max_memory_allocated`."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.buffers_bytes
        )

    @property
    def reserved_bytes(self) -> Num:
        """What the caching allocator holds: torch's `max_memory_reserved`."""
        return self.needed_bytes + self.held_bytes

    @property
    def needed_bytes(self) -> Num:
        """What the caching allocator cannot do without."""
        return self.allocated_bytes + self.fragmentation_bytes

    @property
    def total_bytes(self) -> Num:
        """What the device has in use: the sum of all parts."""
        return self.reserved_bytes + self.context_bytes


PARTS = tuple(f.name for f in fields(Memory) if f.name != "late_bytes")
"""The causes that add up to the total."""


def memory(case: Case) -> Memory:
    """Peak of the fullest rank: of the first, an ordinary or the last stage, whichever is worst."""
    return assembled(_fullest, _states(case), _working(case))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peak:
    """Bytes of the fullest rank without its causes; fields as those of `Memory`."""

    needed_bytes: Num
    held_bytes: Num
    late_bytes: Num
    context_bytes: Num

    @property
    def total_bytes(self) -> Num:
        """What the device has in use."""
        return self.needed_bytes + self.held_bytes + self.context_bytes


def peak(case: Case) -> Peak:
    """Of the rank that `memory` tells the parts of."""
    states, working = _states(case), _working(case)
    needed = [s.needed_bytes + w.needed_bytes for s, w in zip(states, working, strict=True)]
    context = states[0].context_bytes
    if not np.any(case.traits.streams_hold):
        most = np.maximum(np.maximum(needed[0], needed[1]), needed[2])
        return Peak(needed_bytes=most, held_bytes=0.0, late_bytes=0.0, context_bytes=context)
    held = [
        np.minimum(w.wanted_bytes, np.maximum(s.limit_bytes - s.context_bytes - n, 0.0))
        for s, w, n in zip(states, working, needed, strict=True)
    ]
    fullest = np.argmax(np.stack(needed) + np.stack(held), axis=0)[None]

    def there(stages: Sequence[Num]) -> Num:
        bytes_: Num = np.take_along_axis(np.stack(stages), fullest, axis=0)[0]
        return bytes_

    return Peak(
        needed_bytes=there(needed),
        held_bytes=there(held),
        late_bytes=there([w.late_bytes for w in working]),
        context_bytes=context,
    )


def _fullest(states: Sequence[_States], working: Sequence[_Working]) -> Memory:
    """Row by row the fullest of the stages there are."""
    found = [_joined(*both) for both in zip(states, working, strict=True)]
    worst, used = found[0], found[0].total_bytes
    for other, work in zip(found[1:], working[1:], strict=True):
        fuller = np.asarray(other.total_bytes - work.absent_bytes > used)
        used = np.where(fuller, other.total_bytes, used)
        worst = Memory(
            **{
                f.name: np.where(fuller, getattr(other, f.name), getattr(worst, f.name))[()]
                for f in fields(Memory)
            }
        )
    return worst


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stage:
    """A pipeline stage: layers, vocabulary matrices, position, and 1 where it ends in the loss."""

    layers: Num
    embeddings: Num
    position: Num
    head: Num
    absent_bytes: Num = 0.0
    """Infinite where a pipeline is too short to have it."""


def _stage(case: Case, position: str) -> _Stage:
    k, m, split, alone = case.knobs, case.model, chunks(case), single_stage(case)
    others = (k.vpp - 1) * split.middle
    last_layers = others + split.last + m.mtp
    if position == "first":
        return _Stage(
            layers=np.where(alone > 0, k.vpp * split.middle + m.mtp, others + split.first),
            embeddings=1 + alone * (1 - m.tied),
            position=0.0 * k.pp,
            head=alone,
        )
    if position == "last":
        return _Stage(
            layers=last_layers,
            embeddings=1 + alone * (1 - m.tied),
            position=k.pp - 1,
            head=1.0,
            absent_bytes=_beyond(k.pp, 1),
        )
    return _Stage(
        layers=k.vpp * split.middle,
        embeddings=0.0,
        position=np.minimum(1.0, k.pp - 1),
        head=0.0,
        absent_bytes=_beyond(k.pp, 2),
    )


def _beyond(pp: Num, stages: int) -> Num:
    """Infinite where a pipeline has no more than `stages` stages, else 0."""
    return np.where(np.asarray(pp) > stages, 0.0, np.inf)


def memory_of_stage(case: Case, position: str) -> Memory:
    """Peak of one rank of the stage `position`, one of `STAGES`; `first` holds global rank 0."""
    stage = _stage(case, position)
    return _joined(_states_of(case, stage), _working_of(case, stage, _shared(case)))


def memory_of_rank(case: Case, rank: int) -> Memory:
    """Peak of pipeline rank `rank` of one layout: 0 holds the embedding, pp - 1 ends in the loss.

    Ranks between them differ in how many micro-batches they keep alive.
    """
    last = int(np.max(case.knobs.pp)) - 1
    position = "first" if rank == 0 else "last" if rank == last else "middle"
    stage = replace(_stage(case, position), position=float(rank))
    return _joined(_states_of(case, stage), _working_of(case, stage, _shared(case)))


def _joined(states: _States, working: _Working) -> Memory:
    """The memory of one stage."""
    found = Memory(
        weights_bytes=states.weights_bytes,
        gradients_bytes=states.gradients_bytes,
        optimizer_bytes=states.optimizer_bytes,
        activations_bytes=working.activations_bytes,
        logits_bytes=working.logits_bytes,
        buffers_bytes=states.buffers_bytes + working.buffers_bytes,
        context_bytes=states.context_bytes,
        fragmentation_bytes=states.fragmentation_bytes + working.fragmentation_bytes,
        held_bytes=0.0 * working.activations_bytes,
        late_bytes=working.late_bytes,
    )
    room = np.maximum(states.limit_bytes - found.total_bytes, 0.0)
    return replace(found, held_bytes=np.minimum(working.wanted_bytes, room))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shared:
    """What every stage of a pipeline has in common: bytes of one layer, and of the head."""

    saved: Num
    backward: Num
    logits: Num


@per_combination
def _shared(case: Case) -> _Shared:
    return _Shared(
        saved=saved_layer_bytes(case),
        backward=layer_backward_bytes(case),
        logits=logits_bytes(case),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _States:
    """What a stage holds through the whole step, whatever its micro-batches are.

    `limit_bytes` is the use of the device up to which what is not needed is held back.
    """

    weights_bytes: Num
    gradients_bytes: Num
    optimizer_bytes: Num
    buffers_bytes: Num
    fragmentation_bytes: Num
    context_bytes: Num
    limit_bytes: Num

    @property
    def needed_bytes(self) -> Num:
        """All but the context."""
        states = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return states + self.buffers_bytes + self.fragmentation_bytes


@kept_per_combination
def _states(case: Case) -> tuple[_States, ...]:
    """Of the stages in the order of `STAGES`."""
    return tuple(_states_of(case, _stage(case, position)) for position in STAGES)


def _states_of(case: Case, stage: _Stage) -> _States:
    c = case.memory
    params = rank_parameters(case, stage.layers, stage.embeddings)
    weights, gradients, optimizer = static_bytes(case, params)
    buffers = unsharded_bytes(case, flag(np.asarray(stage.embeddings) > 0))
    return _States(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        buffers_bytes=buffers,
        fragmentation_bytes=c.fragmentation * buffers,
        context_bytes=c.context_bytes + COMMUNICATOR_BYTES * communicators(case),
        limit_bytes=HELD_LIMIT * np.asarray(case.machine.memory_bytes),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Working:
    """What the micro-batches in flight take on a stage.

    `wanted_bytes` would be held besides if there were room, and `late_bytes` of them even if there
    were not; `absent_bytes` is the stage's own.
    """

    activations_bytes: Num
    logits_bytes: Num
    buffers_bytes: Num
    fragmentation_bytes: Num
    wanted_bytes: Num
    late_bytes: Num
    absent_bytes: Num

    @property
    def needed_bytes(self) -> Num:
        """All but what is only wanted; less than nothing where there is no such stage."""
        working = self.activations_bytes + self.logits_bytes + self.buffers_bytes
        return working + self.fragmentation_bytes - self.absent_bytes


@kept_per_combination
def _working(case: Case) -> tuple[_Working, ...]:
    """Of the stages in the order of `STAGES`."""
    shared = _shared(case)
    return tuple(_working_of(case, _stage(case, position), shared) for position in STAGES)


def _working_of(case: Case, stage: _Stage, shared: _Shared) -> _Working:
    k, c = case.knobs, case.memory
    alive = in_flight(k.pp, k.vpp, k.micro_batches, k.group, k.schedule, stage.position)
    per_chunk = shared.saved * stage.layers / k.vpp
    saved = per_chunk * alive
    logits = shared.logits * stage.head
    params = rank_parameters(case, stage.layers, stage.embeddings)
    halves = case.traits.half_gradient_bytes * params.total
    widest = np.maximum(np.maximum(shared.backward, logits), shared.backward + halves - per_chunk)
    buffers = staging_bytes(case) + widest - logits
    cached = cached_score_bytes(case) * stage.head
    wanted = _wanted(case, stage.layers, alive)
    anew = np.asarray(case.traits.gather_buffers) == 0
    return _Working(
        activations_bytes=saved,
        logits_bytes=logits,
        buffers_bytes=buffers,
        fragmentation_bytes=c.fragmentation * (saved + logits + buffers) + cached,
        wanted_bytes=wanted,
        late_bytes=np.where(anew & (np.asarray(k.micro_batches) > 1), wanted, 0.0),
        absent_bytes=stage.absent_bytes,
    )


def _wanted(case: Case, layers: Num, alive: Num) -> Num:
    """Full-length tensors of sequence-parallel layers that a communication stream still uses.

    The host runs ahead of the GPU by a bounded number of kernels, and what was freed meanwhile
    cannot be handed out again. Without a buffer for gathered inputs these are two a layer of every
    micro-batch and of the next; with one, the two outputs a layer before they are scattered, of
    forward passes that follow each other. The allocator asks for it back when memory runs short:
    in vain while micro-batches follow each other and every gathered input is allocated anew.
    """
    if not np.any(case.traits.streams_hold):
        return 0.0 * alive
    k = case.knobs
    anew = np.where(np.asarray(k.micro_batches) > 1, 2.0, 1.0) * alive
    in_a_row = np.maximum(alive - 2, 0.0)
    passes = np.where(np.asarray(case.traits.gather_buffers) > 0, in_a_row, anew)
    most = case.memory.held_tensors * case.traits.streams_hold
    count = np.minimum(2 * layers / k.vpp * passes, most)
    parted = np.where(np.asarray(k.sp) > 0, 1 - 1 / k.tp, 0.0)
    return count * HALF_BYTES * tokens(case) * case.model.h * parted


@per_combination
def communicators(case: Case) -> Num:
    """NCCL communicators a rank opens: one per kind of group that has more than one member."""
    k = case.knobs
    sizes = (k.tp, k.pp, k.cp, k.dp, k.ep)
    return sum((flag(np.asarray(size) > 1) for size in sizes), start=0.0)


# --- does it fit --------------------------------------------------------------------------------


def fits_probability(memory: Memory | Peak, capacity_bytes: Num, constants: MemoryConstants) -> Num:
    """Probability that a rank of `capacity_bytes` does not run out.

    The allocator's part is log-normal around its prediction with deviation `error_sigma`; the
    context is taken as known. One half where prediction and capacity meet. The normal distribution
    is approximated by a logistic curve.
    """
    room = np.maximum(np.asarray(capacity_bytes) - memory.context_bytes, 1.0)
    z = np.log(room / (memory.needed_bytes + memory.late_bytes)) / constants.error_sigma
    return 1 / (1 + np.exp(np.clip(-LOGISTIC_SLOPE * z, -60.0, 60.0)))
