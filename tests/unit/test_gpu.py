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
    NVML_SUCCESS = 0
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPM_METRICS_GET_VERSION = 1

    def __init__(self, *devices: dict, driver: bool = True) -> None:
        self.devices = [
            {"uuid": f"GPU-{i}", "busy": 40, "used": 3, "total": 80, "mig": 0, "pids": [1]} | d
            for i, d in enumerate(devices)
        ]
        self.driver = driver
        self.samples = 0

    def c_nvmlGpmMetricsGet_t(self):  # noqa: N802 - NVML's name
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, nvmlReturn=1, value=0.0)])

    def nvmlGpmSampleAlloc(self):  # noqa: N802
        self.samples += 1
        return {}

    def nvmlGpmSampleFree(self, sample: dict) -> None:  # noqa: N802
        assert not sample.pop("freed", False)
        sample["freed"] = True
        self.samples -= 1

    def nvmlGpmSampleGet(self, device: dict, sample: dict) -> None:  # noqa: N802
        if "active" not in device:
            raise NVMLError
        sample["active"] = device["active"]

    def nvmlGpmMigSampleGet(self, device: dict, instance: int, sample: dict) -> None:  # noqa: N802
        sample["active"] = device["part_active"][instance]

    def nvmlGpmMetricsGet(self, asked) -> None:  # noqa: N802
        assert (asked.version, asked.numMetrics, asked.metrics[0].metricId) == (1, 1, 2)
        assert not asked.sample1.get("freed")
        asked.metrics[0].nvmlReturn = 0
        asked.metrics[0].value = asked.sample2["active"]

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
            part = {"uuid": device["parts"][arguments[1]], "instance": arguments[1]}
            return part | {"used": 1 + arguments[1], "total": 10}
        value = {
            "nvmlDeviceGetUUID": device["uuid"],
            "nvmlDeviceGetName": "H100",
            "nvmlDeviceGetGpuInstanceId": device.get("instance"),
            "nvmlGpmQueryDeviceSupport": SimpleNamespace(
                isSupportedDevice=int("active" in device or "part_active" in device)
            ),
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


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sm_activity_is_what_was_counted_since_the_reading_before() -> None:
    recorded, clock = Recorded({"active": 25.0}), Clock()
    reader = GpuReader(recorded, {}, clock)
    assert reader.read()[0].sm_activity is None  # there is nothing before the first
    clock.now = 1.0
    assert reader.read()[0].sm_activity == pytest.approx(0.25)
    recorded.devices[0]["active"] = 75.0
    clock.now = 1.05  # too near: what was said stays
    assert reader.read()[0].sm_activity == pytest.approx(0.25)
    clock.now = 2.0
    assert reader.read()[0].sm_activity == pytest.approx(0.75)
    assert recorded.samples == 1
    recorded.nvmlShutdown = lambda: None
    reader.close()
    assert recorded.samples == 0


@pytest.mark.parametrize("said", [float("nan"), -1.0, 300.0])
def test_an_activity_that_can_not_be_is_none(said: float) -> None:
    clock = Clock()
    reader = GpuReader(Recorded({"active": said}), {}, clock)
    reader.read()
    clock.now = 1.0
    assert reader.read()[0].sm_activity is None


def test_a_chip_that_does_not_count_it_has_no_sm_activity_and_holds_no_sample() -> None:
    for device in ({}, {"active": 1.0, "refuses": ["nvmlGpmQueryDeviceSupport"]}):
        recorded, clock = Recorded(device), Clock()
        reader = GpuReader(recorded, {}, clock)
        reader.read()
        clock.now = 1.0
        assert reader.read()[0].sm_activity is None
        assert recorded.samples == 0


def test_of_a_device_in_parts_memory_and_activity_are_those_of_the_parts_that_may_be_used() -> None:
    recorded = Recorded({"mig": 1, "parts": ["MIG-a", "MIG-b"], "part_active": [20.0, 60.0]})
    for visible, active, used in (("MIG-b", 0.6, 2), ("MIG-a,MIG-b", 0.4, 3), ("all", 0.4, 3)):
        clock = Clock()
        reader = GpuReader(recorded, {"NVIDIA_VISIBLE_DEVICES": visible}, clock)
        reader.read()
        clock.now = 1.0
        (reading,) = reader.read()
        assert (reading.sharing, reading.utilization) == ("mig", None)
        assert reading.sm_activity == pytest.approx(active)
        assert reading.memory_used_bytes == used
