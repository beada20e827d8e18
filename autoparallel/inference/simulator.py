"""Continuous batching event by event: what each request of a load or a trace meets on a replica.

The engine of one replica takes waiting requests in order as long as its batch limit and its KV
cache have room, fills every step with prompt chunks up to its token budget, and advances all
decoding requests by one step. Steps take what `steps.mixed_step` says, tabulated once. Stages and
attention copies work side by side: a step advances all of them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoparallel.inference.engine_memory import kv_capacity_tokens
from autoparallel.inference.instance import Instance
from autoparallel.inference.setting import Setting
from autoparallel.inference.steps import Batch, mixed_step

Column = NDArray[np.float64]
CHUNKS = 6
"""Tabulated numbers of prompt tokens between none and the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Requests of one replica.

    Attributes:
        arrival_s: When each comes; in a closed loop when each client first asks.
        clients: Clients of a closed loop, which ask again when they have their answer; 0 when all
            requests come at `arrival_s`.
    """

    arrival_s: Sequence[float]
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    clients: int = 0
    prefix_tokens: int = 0
    accepted_tokens: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """What every request met, in order of completion; `running` is a mean over time.

    Attributes:
        tpot_s: NaN for requests of one token.
        busy_s: From the first arrival to the last completion.
    """

    ttft_s: Column
    tpot_s: Column
    e2e_s: Column
    tokens: Column
    busy_s: float
    running: float

    @property
    def requests_per_s(self) -> float:
        """Completions a second over the whole run."""
        return self.ttft_s.size / self.busy_s if self.busy_s > 0 else 0.0

    def figures(self, name: str, first: int = 0) -> Column:
        """Mean, p50, p90 and p99 of `ttft_s`, `tpot_s` or `e2e_s`, without the `first` ones."""
        values = getattr(self, name)[first:]
        kept = values[np.isfinite(values)]
        if not kept.size:
            return np.zeros(4)
        return np.array([kept.mean(), *np.percentile(kept, (50, 90, 99))])


class _StepTable:
    """Step times over decoding requests, prompt tokens and context, interpolated linearly."""

    def __init__(
        self, setting: Setting, instance: Instance, most: int, longest: float, prefix: int
    ) -> None:
        lanes = int(_scalar(instance.pipeline_model_parallel_size))
        copies = _scalar(instance.attention_data_parallel_size)
        budget = _scalar(instance.max_num_tokens) * copies
        decoding = [0.0, *(2.0**i for i in range(max(most // lanes, 1).bit_length() + 1))]
        chunks = [0.0, *np.geomspace(max(budget / 64, 1.0), budget, CHUNKS)]
        contexts = [1.0, longest / 2, longest]
        grid = np.meshgrid(decoding, chunks, contexts, indexing="ij")
        b, tokens, context = (np.asarray(x, dtype=np.float64).ravel() for x in grid)
        batch = Batch(
            decoding=b,
            context_tokens=context,
            prompt_tokens=tokens,
            prompt_context=prefix + np.maximum(context - prefix, 1.0) / 2,
        )
        shape = grid[0].shape
        seconds = np.broadcast_to(mixed_step(setting, instance, batch).total, b.shape)
        self._seconds = seconds.reshape(shape).tolist()
        self._axes = (decoding, chunks, contexts)
        self._lanes = lanes

    def seconds(self, decoding: int, prompt_tokens: float, prompts: int, context: float) -> float:
        """Time of a step of all stages; each has its share of the requests and prompts."""
        sharing = min(max(prompts, 1), self._lanes)
        point = (decoding / self._lanes, prompt_tokens / sharing, context)
        (i, x), (j, y), (k, z) = (
            _cell(axis, value) for axis, value in zip(self._axes, point, strict=True)
        )
        table = self._seconds
        total = 0.0
        for a, u in ((i, 1 - x), (i + 1, x)):
            for b, v in ((j, 1 - y), (j + 1, y)):
                row = table[a][b]
                total += u * v * (row[k] * (1 - z) + row[k + 1] * z)
        return total


def _cell(axis: Sequence[float], value: float) -> tuple[int, float]:
    """Lower corner and position inside the cell; outside the table the edge holds."""
    at = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
    width = axis[at + 1] - axis[at]
    return at, min(max((value - axis[at]) / width, 0.0), 1.0) if width > 0 else 0.0


@dataclass(slots=True)
class _Request:
    """One request on its way through the engine."""

    index: int
    arrival_s: float
    prompt: float
    output: int
    left: float = 0.0
    first_s: float = 0.0
    held: float = 0.0


def simulate(setting: Setting, instance: Instance, arrivals: Arrivals) -> Simulated:
    """Run one replica until every request is answered.

    Args:
        setting: What is served.
        instance: The replica: one value a field.
        arrivals: Its requests.
    """
    return _Engine(setting, instance, arrivals).run()


class _Engine:
    """State of one replica over time."""

    def __init__(self, setting: Setting, instance: Instance, arrivals: Arrivals) -> None:
        copies = _scalar(instance.attention_data_parallel_size)
        lanes = _scalar(instance.pipeline_model_parallel_size)
        pairs = list(zip(arrivals.input_tokens, arrivals.output_tokens, strict=True))
        longest = float(max(i + o for i, o in pairs))
        typical = float(np.mean([i + o for i, o in pairs]))
        self.most = max(round(_scalar(instance.most_running)), 1)
        self.budget = _scalar(instance.max_num_tokens) * copies * lanes
        self.room = _scalar(kv_capacity_tokens(setting, instance, typical))
        prefix = arrivals.prefix_tokens
        self.table = _StepTable(setting, instance, self.most, longest, prefix)
        self.mixed = setting.backend.mixed_steps
        self.outside_s = _scalar(setting.constants.request_s)
        self.accepted = arrivals.accepted_tokens
        self.clients = arrivals.clients
        self.starts = deque(sorted(arrivals.arrival_s[: arrivals.clients]))
        self.requests = deque(
            _Request(n, a, float(max(i - prefix, 1)), o, held=float(i + o))
            for n, (a, (i, o)) in enumerate(zip(arrivals.arrival_s, pairs, strict=True))
        )
        self.now = 0.0
        self.steps = 0.0
        self.waiting: deque[_Request] = deque()
        self.prefilling: deque[_Request] = deque()
        self.decoding: list[tuple[float, int, _Request]] = []
        self.used = 0.0
        self.context = typical
        self.done: list[tuple[float, float, float, int]] = []
        self.area = 0.0

    def run(self) -> Simulated:
        """All steps, then the figures."""
        while self.requests or self.waiting or self.prefilling or self.decoding:
            self._arrive()
            self._admit()
            if not self.prefilling and not self.decoding:
                self.now = max(self.now, self._next_s())
                continue
            self._step()
        ttft, tpot, e2e, tokens = (np.array(x, dtype=float) for x in zip(*self.done, strict=True))
        return Simulated(
            ttft_s=ttft,
            tpot_s=tpot,
            e2e_s=e2e,
            tokens=tokens,
            busy_s=self.now,
            running=self.area / self.now if self.now > 0 else 0.0,
        )

    def _send(self, when: float) -> None:
        """A client of the closed loop asks."""
        if self.requests:
            request = self.requests.popleft()
            request.arrival_s = when
            self.waiting.append(request)

    def _next_s(self) -> float:
        """When the next request comes that waits for no answer."""
        if self.clients:
            return self.starts[0] if self.starts and self.requests else float("inf")
        return self.requests[0].arrival_s if self.requests else float("inf")

    def _arrive(self) -> None:
        """What has come by now stands in line."""
        while self._next_s() <= self.now:
            if self.clients:
                self._send(self.starts.popleft())
            else:
                self.waiting.append(self.requests.popleft())

    def _admit(self) -> None:
        """Take requests in order while the batch and the cache have room for them whole."""
        running = len(self.prefilling) + len(self.decoding)
        while self.waiting and running < self.most:
            held = self.waiting[0].held
            if running and self.used + held > self.room:
                return
            self.used += held
            self.prefilling.append(self.waiting.popleft())
            running += 1

    def _step(self) -> None:
        """One step with prompts, or as many steps without as nothing changes in."""
        decoding = len(self.decoding)
        advancing = decoding if self.mixed or not self.prefilling else 0
        if not self.prefilling:
            seconds = self.table.seconds(decoding, 0.0, 0, self.context)
            self._pass(self._quiet(seconds), seconds, advancing)
            return
        budget = max(self.budget - advancing, 1.0)
        finished, taken, touched = [], 0.0, 0
        while self.prefilling and taken < budget:
            head = self.prefilling[0]
            part = min(head.prompt, budget - taken)
            head.prompt -= part
            taken += part
            touched += 1
            if head.prompt > 0:
                break
            finished.append(self.prefilling.popleft())
        seconds = self.table.seconds(advancing, taken, touched, self.context)
        self._pass(1.0, seconds, advancing)
        for request in finished:
            self._first(request)

    def _quiet(self, seconds: float) -> float:
        """Steps until a request ends or, where there is room for it, one arrives."""
        steps = max(np.ceil(self.decoding[0][0] - self.steps), 1.0)
        if len(self.decoding) < self.most and np.isfinite(soon := self._next_s()):
            steps = min(steps, max(np.ceil((soon - self.now) / seconds), 1.0))
        return float(steps)

    def _pass(self, steps: float, seconds: float, advancing: int) -> None:
        """Let `steps` steps go by; requests that decode get on if `advancing`."""
        span = steps * seconds
        self.area += span * (len(self.prefilling) + len(self.decoding))
        self.now += span
        if not advancing:
            return
        self.steps += steps
        while self.decoding and self.decoding[0][0] <= self.steps + 1e-9:
            self._end(heapq.heappop(self.decoding)[2])

    def _first(self, request: _Request) -> None:
        """The prompt is done: the first token is out."""
        request.first_s = self.now
        steps = (request.output - 1) / self.accepted
        if steps <= 0:
            self._end(request)
        else:
            heapq.heappush(self.decoding, (self.steps + steps, request.index, request))

    def _end(self, request: _Request) -> None:
        """The last token is out; a client of the closed loop asks again."""
        self.used -= request.held
        first = request.first_s - request.arrival_s + self.outside_s
        gaps = request.output - 1
        between = (self.now - request.first_s) / gaps if gaps else float("nan")
        whole = self.now - request.arrival_s + self.outside_s
        self.done.append((first, between, whole, request.output))
        if self.clients:
            self._send(self.now + self.outside_s)


def even_arrivals(
    input_tokens: int,
    output_tokens: int,
    count: int,
    *,
    clients: int = 0,
    cycle_s: float = 0.0,
    request_rate: float = 0.0,
    prefix_tokens: int = 0,
    accepted_tokens: float = 1.0,
    seed: int = 0,
) -> Arrivals:
    """`count` equal requests: of a closed loop, or at random times with a mean rate.

    Args:
        input_tokens: Prompt of each.
        output_tokens: Answer of each.
        count: How many.
        clients: Of the closed loop; 0 for random times.
        cycle_s: Time over which the clients' first requests are spread.
        request_rate: Mean rate of the random times.
        prefix_tokens: Prompt tokens in the prefix cache.
        accepted_tokens: Tokens a decode step yields.
        seed: Of the random times.
    """
    draw = np.random.default_rng(seed)
    gaps = draw.exponential(1.0 / max(request_rate, 1e-12), count)
    times = np.cumsum(gaps) - gaps[0]
    if clients:
        times = np.concatenate((np.sort(draw.uniform(0, cycle_s, clients)), np.zeros(count)))[
            :count
        ]
    return Arrivals(
        arrival_s=times.tolist(),
        input_tokens=[input_tokens] * count,
        output_tokens=[output_tokens] * count,
        clients=clients,
        prefix_tokens=prefix_tokens,
        accepted_tokens=accepted_tokens,
    )


def _scalar(value: object) -> float:
    return float(np.ravel(np.asarray(value, dtype=np.float64))[0])
