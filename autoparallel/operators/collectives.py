"""Time of collectives: inside an NVLink domain, and between nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoparallel.operators.lookup import Array, bilinear, entry
from autoparallel.units import Num

WIRE_FACTOR = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
"""A rank sends `factor * (n - 1) / n` of the full message (NCCL-tests PERFORMANCE.md)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectiveTable:
    """Time of NCCL collectives among GPUs that share NVLink.

    Attributes:
        log2_seconds: Per operation, log2 of the time; rows are ranks 2, 4, 8, ... and columns
            message sizes one octave apart, the first of `2**first_size_log2` bytes.
        assumed_beyond_ranks: Rows of more ranks than this are extrapolated, not measured.
        link_bytes_per_s: NVLink of the measured system, per GPU and direction.
    """

    gpu: str
    link_bytes_per_s: float
    log2_seconds: dict[str, Array]
    first_size_log2: float
    assumed_beyond_ranks: int
    nature: str
    source: str

    def seconds(self, op: str, message_bytes: Num, ranks: Num) -> Num:
        """Time of one collective; exactly 0 for one rank or an empty message.

        `message_bytes` is the full buffer of one rank: the reduced tensor, the gathered result, the
        input of a reduce-scatter, all that a rank sends in an all-to-all (its own part included).
        Below the smallest size the latency floor holds; above the largest the last bandwidth does.
        More ranks are not always slower, as measured: NVLS all-reduce on 8 GPUs beats 4 (NVLink
        SHARP), a V100 pair shares fewer links than a ring of 8, and between 2 and 8 MiB NCCL
        changes protocol at other sizes for 4 ranks than for 8.

        Args:
            op: `all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, or `custom_all_reduce`
                (the one-shot kernels of inference engines).
            message_bytes: Scalar or [N].
            ranks: Group size, scalar or [N]; all inside one NVLink domain.

        Raises:
            ProfileError: the table has no such operation.
        """
        table = entry(self.log2_seconds, op, f"operator of {self.gpu}")
        rows, columns = table.shape
        size, n = np.maximum(message_bytes, 1.0), np.maximum(ranks, 1.0)
        octave = np.log2(size) - self.first_size_log2
        log2_s = bilinear(
            table,
            np.clip(np.log2(n) - 1.0, 0.0, rows - 1.0),
            np.clip(octave, 0.0, columns - 1.0),
        )
        beyond = np.exp2(np.maximum(octave - (columns - 1.0), 0.0))
        does_something = (np.asarray(ranks) > 1) & (np.asarray(message_bytes) > 0)
        result: Num = np.exp2(log2_s) * beyond * does_something
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkTable:
    """What share of its theoretical bus bandwidth a collective across nodes reaches.

    Attributes:
        log2_effective_bytes: Per operation, log2 of message size over that share; rows are 2, 4, 8,
            ... nodes, columns octaves of size from `2**first_size_log2` bytes.
        floor_s: Per operation, the base latency per number of nodes (same rows).
    """

    log2_effective_bytes: dict[str, Array]
    first_size_log2: float
    floor_s: dict[str, Array]
    source: str

    def fraction(self, op: str, message_bytes: Num, nodes: Num) -> Num:
        """Measured over theoretical bus bandwidth, in (0, 1]; the edge value outside the table.

        Below the smallest tabulated size (16 MiB) use `seconds`, which goes to the latency floor.
        """
        table = entry(self.log2_effective_bytes, op, "operator between nodes")
        first = np.exp2(self.first_size_log2)
        last = np.exp2(self.first_size_log2 + table.shape[1] - 1)
        size = np.clip(message_bytes, first, last)
        return size / np.exp2(
            bilinear(table, self._row(table, nodes), np.log2(size) - self.first_size_log2)
        )

    def seconds(
        self, op: str, message_bytes: Num, nodes: Num, gpus_per_node: Num, bus_bytes_per_s: Num
    ) -> Num:
        """Time of a collective over all GPUs of `nodes` nodes; 0 for one node or an empty message.

        At and above 16 MiB: wire bytes over `bus_bytes_per_s` times `fraction`. Below it a straight
        line from the latency floor at size 0 to that time.

        Args:
            op: `all_reduce`, `all_gather`, `reduce_scatter` or `all_to_all`.
            message_bytes: Full buffer of one rank, as in `CollectiveTable.seconds`.
            nodes: Nodes the group spans.
            gpus_per_node: Ranks of the group on each node.
            bus_bytes_per_s: Theoretical bus bandwidth of the group, per rank and one direction.
        """
        floor = entry(self.floor_s, op, "operator between nodes")
        n = np.maximum(nodes * gpus_per_node, 1.0)
        first = np.exp2(self.first_size_log2)
        size = np.maximum(message_bytes, first)
        wire = WIRE_FACTOR[op] * (n - 1) / n * size
        large = wire / (bus_bytes_per_s * self.fraction(op, size, nodes))
        row = self._row(self.log2_effective_bytes[op], nodes)
        floor_s = np.minimum(np.interp(row, np.arange(len(floor)), floor), large)
        ramp = np.minimum(np.asarray(message_bytes) / first, 1.0)
        does_something = (np.asarray(nodes) > 1) & (np.asarray(message_bytes) > 0)
        result: Num = (floor_s + (large - floor_s) * ramp) * does_something
        return result

    @staticmethod
    def _row(table: Array, nodes: Num) -> Num:
        return np.clip(np.log2(np.maximum(nodes, 1.0)) - 1.0, 0.0, table.shape[0] - 1.0)
