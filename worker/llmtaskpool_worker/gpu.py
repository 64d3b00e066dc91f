"""What NVML says of the devices this process may use. The only file that imports pynvml.

NVML's utilization is the share of time in which any kernel ran: near 1 at any load. It is shown
and says "idle" reliably; nothing is sized by it unless a pool asks for that (docs/law.md).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from llmtaskpool_worker.contract import GpuReading

log = logging.getLogger("llmtaskpool.gpu")

Sharing = Literal["exclusive", "mig", "time-slicing"]


class GpuReader:
    """Reads the devices through ``nvml``, a module with NVML's functions (pynvml, or a recorded
    one). Without driver or library there are no readings: an absent device is never a 0.
    """

    def __init__(self, nvml: Any, environment: Mapping[str, str]) -> None:
        self._nvml = nvml
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
            self._nvml.nvmlShutdown()

    def _device(self, index: int) -> GpuReading | None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            if not _may_use(self._visible, index, uuid, self._mig_uuids(handle)):
                return None
            name = _text(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError as error:
            if index not in self._lost:
                self._lost.add(index)
                log.warning("GPU %d can't be read any more: %s", index, type(error).__name__)
            return None
        self._lost.discard(index)
        sharing = self._sharing(handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        # A partitioned device has no utilization of its own: NVML refuses, and so do we.
        busy = None if sharing == "mig" else self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return GpuReading(
            index=index,
            name=name,
            utilization=None if busy is None else min(max(busy.gpu / 100, 0.0), 1.0),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            sharing=sharing,
        )

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

    def _mig_uuids(self, handle: Any) -> set[str]:
        nvml = self._nvml
        most = self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        found = set()
        for place in range(most):
            part = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if part is not None:
                found.add(_text(nvml.nvmlDeviceGetUUID(part)))
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
