"""What NVML says of the devices this process may use. The only file that imports pynvml.

NVML's utilization is the share of time in which any kernel ran: near 1 at any load. It is shown
and says "idle" reliably; nothing is sized by it unless a pool asks for that (docs/law.md). SM
activity, where the chip counts it (GPM), is the share of the multiprocessors that worked.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

from llmtaskpool_worker.contract import GpuReading

log = logging.getLogger("llmtaskpool.gpu")

Sharing = Literal["exclusive", "mig", "time-slicing"]

SHORTEST_SECONDS = 0.1
"""SM activity is counted between two samples; NVML wants so much time between them."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A MIG part of a device: its handle, UUID and the number of its GPU instance."""

    handle: Any
    uuid: str
    instance: int | None


class _Activity:
    """SM activity by GPM: of each device or part, between this reading and the one before."""

    def __init__(self, nvml: Any, clock: Callable[[], float]) -> None:
        self._nvml, self._clock = nvml, clock
        self._last: dict[str, tuple[float, Any, float | None]] = {}

    def of(self, key: str, take: Callable[[Any], object]) -> float | None:
        """From 0 to 1; None at the first reading. ``take`` fills a sample. Raises NVMLError."""
        nvml, now = self._nvml, self._clock()
        before = self._last.get(key)
        if before is not None and now - before[0] < SHORTEST_SECONDS:
            return before[2]
        sample = nvml.nvmlGpmSampleAlloc()
        try:
            take(sample)
            value = None if before is None else self._between(before[1], sample)
        except nvml.NVMLError:
            nvml.nvmlGpmSampleFree(sample)
            raise
        if before is not None:
            nvml.nvmlGpmSampleFree(before[1])
        self._last[key] = now, sample, value
        return value

    def close(self) -> None:
        """Give the samples back."""
        for _, sample, _ in self._last.values():
            self._nvml.nvmlGpmSampleFree(sample)
        self._last.clear()

    def _between(self, first: Any, last: Any) -> float | None:
        nvml = self._nvml
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
        asked.sample1, asked.sample2 = first, last
        asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
        nvml.nvmlGpmMetricsGet(asked)
        answer = asked.metrics[0]
        if answer.nvmlReturn != nvml.NVML_SUCCESS or not 0 <= answer.value <= 101:
            return None  # NaN fails the comparison too
        return min(float(answer.value) / 100, 1.0)


class GpuReader:
    """Reads the devices through ``nvml``, a module with NVML's functions (pynvml, or a recorded
    one). Without driver or library there are no readings: an absent device is never a 0.
    """

    def __init__(
        self, nvml: Any, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._nvml = nvml
        self._activity = _Activity(nvml, clock)
        self._visible = _visible(environment)
        self._lost: set[int] = set()
        self._started = False
        if nvml is not None:
            try:
                nvml.nvmlInit()
                self._started = True
            except nvml.NVMLError as error:
                log.info("no GPU readings: %s", type(error).__name__)

    def read(self) -> tuple[GpuReading, ...]:
        """One reading per visible device, in NVML's order."""
        if not self._started:
            return ()
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError:
            return ()
        readings = (self._device(index) for index in range(count))
        return tuple(reading for reading in readings if reading is not None)

    def close(self) -> None:
        """Let the library go."""
        if self._started:
            self._started = False
            self._activity.close()
            self._nvml.nvmlShutdown()

    def _device(self, index: int) -> GpuReading | None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            parts = self._parts(handle)
            if not _may_use(self._visible, index, uuid, {part.uuid for part in parts}):
                return None
            name = _text(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError as error:
            if index not in self._lost:
                self._lost.add(index)
                log.warning("GPU %d can't be read any more: %s", index, type(error).__name__)
            return None
        self._lost.discard(index)
        sharing = self._sharing(handle)
        ours = [p for p in parts if _may_use(self._visible, index, uuid, {p.uuid})]
        cut = sharing == "mig" and bool(ours)
        memories = [
            self._ask(nvml.nvmlDeviceGetMemoryInfo, one)
            for one in ([part.handle for part in ours] if cut else [handle])
        ]
        memory = [one for one in memories if one is not None]
        # A partitioned device has no utilization of its own: NVML refuses, and so do we.
        busy = None if sharing == "mig" else self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return GpuReading(
            index=index,
            name=name,
            utilization=None if busy is None else min(max(busy.gpu / 100, 0.0), 1.0),
            memory_used_bytes=sum(int(one.used) for one in memory) if memory else None,
            memory_total_bytes=sum(int(one.total) for one in memory) if memory else None,
            sharing=sharing,
            sm_activity=self._sm_activity(handle, uuid, ours if cut else ()),
        )

    def _sm_activity(self, handle: Any, uuid: str, parts: Sequence[_Part]) -> float | None:
        """Of the device, or the mean of its parts; None where the chip doesn't count it."""
        nvml = self._nvml
        support = self._ask(nvml.nvmlGpmQueryDeviceSupport, handle)
        if support is None or not support.isSupportedDevice:
            return None
        if not parts:
            return self._asked_activity(uuid, partial(nvml.nvmlGpmSampleGet, handle))
        found = [
            self._asked_activity(
                part.uuid, partial(nvml.nvmlGpmMigSampleGet, handle, part.instance)
            )
            for part in parts
            if part.instance is not None
        ]
        known = [one for one in found if one is not None]
        return sum(known) / len(known) if known else None

    def _asked_activity(self, key: str, take: Callable[[Any], object]) -> float | None:
        value: float | None = self._ask(self._activity.of, key, take)
        return value

    def _sharing(self, handle: Any) -> Sharing | None:
        """MIG by its mode; time-slicing by other processes on a device that isn't exclusive."""
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, handle)
        if mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            return "mig"
        running = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if running is None:
            return None
        return "time-slicing" if len({process.pid for process in running}) > 1 else "exclusive"

    def _parts(self, handle: Any) -> list[_Part]:
        nvml = self._nvml
        most = self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        found = []
        for place in range(most):
            part = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if part is not None:
                instance = self._ask(nvml.nvmlDeviceGetGpuInstanceId, part)
                found.append(_Part(part, _text(nvml.nvmlDeviceGetUUID(part)), instance))
        return found

    def _ask(self, call: Any, *arguments: Any) -> Any:
        """A value that not every device has; None where it has none."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def gpu_reader() -> GpuReader:
    """The reader of this process."""
    return GpuReader(_library(), os.environ)


def _library() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    module: ModuleType = pynvml
    return module


def _visible(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The devices the environment allows, as indices or UUIDs; None allows all."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        value = environment.get(name)
        if value is None or value == "all":
            continue
        if value in ("", "none", "void", "-1"):
            return ()
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return None


def _may_use(visible: tuple[str, ...] | None, index: int, uuid: str, parts: set[str]) -> bool:
    if visible is None:
        return True
    names = {uuid, *parts}
    return any(
        str(index) == wanted or any(name.startswith(wanted) for name in names) for wanted in visible
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
