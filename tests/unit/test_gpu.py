"""GPU readings at NVML's boundary: a recorded module in the place of pynvml."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from llmtaskpool_worker.gpu import GpuReader


class NVMLError(Exception):
    pass


class Recorded:
    """What NVML answered, by device."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *devices: dict, driver: bool = True) -> None:
        self.devices = [
            {"uuid": f"GPU-{i}", "busy": 40, "used": 3, "total": 80, "mig": 0, "pids": [1]} | d
            for i, d in enumerate(devices)
        ]
        self.driver = driver

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        if not self.driver:
            raise NVMLError

    def __getattr__(self, name: str):
        return lambda *arguments: self._answer(name, *arguments)

    def _answer(self, name: str, *arguments):
        if name == "nvmlDeviceGetCount":
            return len(self.devices)
        device = arguments[0]
        if name == "nvmlDeviceGetHandleByIndex":
            device = self.devices[device]
            if device.get("lost"):
                raise NVMLError
            return device
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            if arguments[1] >= len(device.get("parts", ())):
                raise NVMLError
            return {"uuid": device["parts"][arguments[1]]}
        value = {
            "nvmlDeviceGetUUID": device["uuid"],
            "nvmlDeviceGetName": "H100",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(
                used=device.get("used"), total=device.get("total")
            ),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=device.get("busy")),
            "nvmlDeviceGetMigMode": (device.get("mig"), device.get("mig")),
            "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=pid) for pid in device.get("pids", ())
            ],
        }.get(name)
        if value is None or name in device.get("refuses", ()):
            raise NVMLError
        return value


def read(recorded: Recorded | None, **environment: str):
    return GpuReader(recorded, environment).read()


def test_a_device_is_read_as_it_is() -> None:
    (reading,) = read(Recorded({}))
    assert reading.utilization == pytest.approx(0.4)
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (3, 80)
    assert (reading.name, reading.sharing) == ("H100", "exclusive")


def test_without_driver_or_library_there_is_no_reading_and_never_a_zero() -> None:
    assert read(Recorded(driver=False)) == ()
    assert read(None) == ()


def test_a_partitioned_device_has_no_utilization_of_its_own() -> None:
    (reading,) = read(Recorded({"mig": 1}))
    assert (reading.sharing, reading.utilization) == ("mig", None)


def test_several_processes_on_a_device_are_time_slicing() -> None:
    (reading,) = read(Recorded({"pids": [1, 2]}))
    assert reading.sharing == "time-slicing"


def test_what_a_device_does_not_tell_is_none() -> None:
    (reading,) = read(Recorded({"refuses": ["nvmlDeviceGetUtilizationRates"]}))
    assert reading.utilization is None
    assert reading.memory_used_bytes == 3


def test_a_lost_device_is_left_out_and_comes_back() -> None:
    recorded = Recorded({}, {})
    reader = GpuReader(recorded, {})
    recorded.devices[0]["lost"] = True
    assert [reading.index for reading in reader.read()] == [1]
    recorded.devices[0]["lost"] = False
    assert [reading.index for reading in reader.read()] == [0, 1]


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-0"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, [0, 1]),
        ({"NVIDIA_VISIBLE_DEVICES": "MIG-b"}, [1]),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, []),
    ],
)
def test_only_devices_that_the_environment_allows_are_read(
    environment: dict[str, str], seen: list[int]
) -> None:
    recorded = Recorded({}, {"mig": 1, "parts": ["MIG-a", "MIG-b"]})
    assert [reading.index for reading in read(recorded, **environment)] == seen
