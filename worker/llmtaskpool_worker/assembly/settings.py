"""The worker's settings: LLMTASKPOOL_* environment variables, each with its meaning.

The command line of ``llmtaskpool-worker serve`` overrides them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from llmtaskpool_worker.assembly.batch_settings import BatchSettings
from llmtaskpool_worker.assembly.queue import check_pool, check_queue, readable_queue, tenants_of
from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT
from llmtaskpool_worker.engines.model_option import parse_model
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of, check_host
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.scheduling import profile
from llmtaskpool_worker.scheduling.aged_share import DEFAULT_AGED_SHARE
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits, ResultLimits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from llmtaskpool_worker.scheduling.tenants import Tenants

PREFIX = "LLMTASKPOOL_"

Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1)]
_ORIGIN = re.compile(r"\*|https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


class SettingsError(Exception):
    """A setting can't be used: the message names it, its value and the remedy."""


class Settings(BatchSettings):
    """All that a worker can be told."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field(
        "127.0.0.1", description="Address of the data port; in a pod ::, which is all."
    )
    port: Port = Field(DATA_PORT, description="Data port; 0 takes a free one.")
    control_host: str = Field("127.0.0.1", description="Address of the control port.")
    control_port: Port = Field(CONTROL_PORT, description="Control port; 0 takes a free one.")
    gate: bool = Field(
        False, description="Hold requests until workers are ready, and run nothing itself."
    )
    worker_id: str = Field("worker", description="Name of this worker; in a pod, the pod's name.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that clients of the data port may use, separated by commas."
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with one such key a line (lines that begin with # are none); read again "
        "when it changes.",
    )
    tenants: Annotated[Tenants, NoDecode, BeforeValidator(tenants_of)] = Field(
        Tenants(),
        description="What owners of keys may have, as name[,share=2][,waiting=9][,running=8]"
        "[,weight=10][,sees=all], separated by semicolons; * is each without a name.",
    )
    tenant_keys_dir: Path | None = Field(
        None, description="Folder with a file of keys, one a line, for each owner that is named."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins of web pages whose scripts may call the data port, as "
        "https://host[:port] or *, separated by commas; unset: none.",
    )
    control_tokens: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Tokens for the control port, separated by commas."
    )
    control_tokens_file: Path | None = Field(
        None,
        description="File with one such token a line (lines that begin with # are none); read "
        "again when it changes.",
    )

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Models as name=source[,task=embed][,alias=name][,option=value], separated by "
        "semicolons.",
    )
    upstream_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts that models of servers (openai:http://host/v1) may be on beside this "
        "machine and Services of the own namespace, as host or host:port, separated by commas.",
    )
    cache_dir: Path | None = Field(
        None, description="Where converted weights are kept; unset: the user's cache folder."
    )
    cache_bytes: Size | None = Field(
        None, description="The most that the cache may hold; unset: what its disk has free."
    )
    hub_token_file: Path | None = Field(
        None, description="File with the model hub's token; read at each load. Else HF_TOKEN."
    )
    hub_tokens_dir: Path | None = Field(
        None,
        description="Folder with such a file for each model that has its own, of the model's name "
        "with %2F for /.",
    )
    trusted_ca_file: Path | None = Field(
        None, description="Certificate authorities (PEM) to trust beside the public ones."
    )
    data_dir: Path | None = Field(
        None, description="Folder whose objects io.read and io.write may use; unset: none."
    )
    fetch_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hosts that io.fetch may call, as host or host:port, separated by commas."
    )
    threads: Annotated[int, Field(ge=1, le=4096)] = Field(
        8, description="Threads (N) of the compute lane at the start."
    )
    threads_max: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="The most threads that the compute lane may be set to."
    )
    io_threads: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="Threads (N) of the io lane at the start."
    )
    io_threads_max: Annotated[int, Field(ge=1, le=4096)] = Field(
        1024, description="The most threads that the io lane may be set to."
    )
    queue: Annotated[str, AfterValidator(check_queue)] = Field(
        "memory",
        description="Where tasks wait: memory, sqlite:PATH for a file of this worker that outlives "
        "it, or the URL of a Redis or Valkey that workers share (redis://, rediss://, unix://, "
        "redis+sentinel://).",
    )
    queue_file: Annotated[Path, AfterValidator(readable_queue)] | None = Field(
        None,
        description="File with such a URL, read at the start: it is not seen by who lists "
        "processes. Before LLMTASKPOOL_QUEUE.",
    )
    queue_pool: Annotated[str, AfterValidator(check_pool)] = Field(
        "local/pool",
        description="Namespace and name of the pool on a shared queue: workers with the same share "
        "its line.",
    )
    queue_allow_volatile: bool = Field(
        False,
        description="Take a shared queue's server also when it may lose tasks: without an "
        "append-only file, or with eviction.",
    )
    queue_limit: Size = Field(
        10_000, description="Tasks that may wait in a lane; beyond, 429 is answered."
    )
    queue_bytes: Size = Field(
        256 * 1024 * 1024, description="Bytes of payload that may wait in a lane."
    )
    queue_policy: QueuePolicy = Field(
        QueuePolicy.PRIORITY, description="Order of the queues: priority or newest-first."
    )
    ageing_seconds: Positive = Field(
        300.0, description="Tasks that waited this long have a share of the thread-seconds."
    )
    aged_share: Annotated[float, Field(ge=0, le=1)] = Field(
        DEFAULT_AGED_SHARE, description="That share; 0: none, 1: they go before all others."
    )
    queue_timeout_seconds: Positive = Field(
        600.0, description="A request that waited this long is given up."
    )
    task_queue_timeout_seconds: Positive = Field(
        86_400.0, description="A task of /v1/tasks that waited this long is given up."
    )
    run_timeout_seconds: Positive = Field(
        3600.0, description="A task that ran this long is stopped."
    )
    result_bytes: Size = Field(
        64 * 1024 * 1024, description="Bytes of memory for results that are fetched later."
    )
    result_seconds: Positive = Field(
        600.0, description="How long a result is kept for its owner, from its end on."
    )
    preempt_factor: Annotated[float, Field(ge=0)] = Field(
        10.0, description="A waiting task with so many times the priority takes a thread; 0: none."
    )
    preempt_wait_seconds: Seconds = Field(
        0.1, description="It does so only where it would wait longer than this otherwise."
    )
    max_attempts: Size = Field(
        3, description="A task that crashed its engine this often is reported as failed."
    )
    stall_seconds: Positive = Field(
        10.0, description="Without a step for this long while work runs, /readyz fails."
    )
    stall_kill_seconds: Positive = Field(
        30.0,
        description="Without a step for this long, the engine is killed and starts anew; "
        "without one for twice as long, /livez fails.",
    )
    tpot_slo_seconds: Positive | None = Field(
        None, description="Time per output token that the latency guard protects; unset: none."
    )

    profiles: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Calibration profiles to start from, separated by commas."
    )

    grace_seconds: Seconds = Field(
        30.0, description="After SIGTERM, work is given this long to finish."
    )
    unroute_seconds: Seconds = Field(
        0.0,
        description="After SIGTERM, requests are still taken this long, while it is unready.",
    )
    heartbeat_seconds: Positive = Field(
        15.0, description="A silent event stream sends a comment this often."
    )
    max_body_bytes: Size = Field(8 * 1024 * 1024, description="Longest request body.")
    max_header_bytes: Size = Field(64 * 1024, description="Longest request head.")
    max_header_count: Size = Field(128, description="Most headers of a request.")
    max_json_depth: Annotated[int, Field(ge=1, le=150)] = Field(
        64, description="Deepest nesting of a JSON body."
    )
    max_json_values: Size = Field(100_000, description="Most values in a JSON body.")
    bodies_bytes: Size = Field(
        256 * 1024 * 1024,
        description="Memory that the bodies of all requests may take at one time; beyond, 503.",
    )
    header_timeout_seconds: Positive = Field(
        10.0, description="A connection must send its request's head within this time."
    )
    body_timeout_seconds: Positive = Field(
        60.0, description="A request must send its body within this time."
    )
    unread_timeout_seconds: Positive = Field(
        60.0, description="A client that reads nothing for this long is cut off."
    )
    keep_alive_seconds: Positive = Field(
        30.0, description="An idle connection is closed after this time."
    )
    max_connections: Size = Field(4096, description="Most connections per port at one time.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )

    @field_validator("api_keys", "control_tokens", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str) or not value:
            return value or ()
        keys = [key for part in re.split(r"[,\n]", value) if (key := part.strip())]
        if not keys:
            raise ValueError("it holds no key: give one, or unset it")
        if any(key.startswith("#") or len(key.split()) > 1 for key in keys):
            raise ValueError("it holds a comment or two keys without a comma between them")
        return keys

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return [o for o in re.split(r"[,\s]+", value) if o] if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin[:80]!r} is no origin: a browser sends no path with it")
        return value

    @field_validator("profiles", mode="before")
    @classmethod
    def _split_profiles(cls, value: object) -> object:
        return [p for p in re.split(r"[,\s]+", value) if p] if isinstance(value, str) else value

    @field_validator("profiles")
    @classmethod
    def _check_profiles(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            profile.read(path)
        return value

    @field_validator("fetch_hosts", "upstream_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        return [h for h in re.split(r"[,\s]+", value) if h] if isinstance(value, str) else value

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        return (
            [m.strip() for m in re.split(r"[;\n]", value) if m.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        models = [parse_model(text) for text in value]
        names = [name for model in models for name in {model.name, *model.aliases}]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called {name!r}: rename one")
        return value

    @model_validator(mode="after")
    def _check_clocks(self) -> Settings:
        if self.stall_seconds > self.stall_kill_seconds:
            raise ValueError(
                f"stall_seconds is {self.stall_seconds:g} and stall_kill_seconds "
                f"{self.stall_kill_seconds:g}: an engine is told to stand still before it is "
                "killed for it; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _check_upstreams(self) -> Settings:
        for spec in self.model_specs():
            if spec.forwards:
                try:
                    check_host(address_of(spec.source), self.upstream_hosts)
                except ValueError as error:
                    raise ValueError(f"model {spec.name}: {error}") from None
        return self

    def model_specs(self) -> list[ModelSpec]:
        """The models, parsed."""
        return [parse_model(text) for text in self.models]

    def calibration(self) -> list[profile.CalibrationProfile]:
        """The calibration profiles, read."""
        return [profile.read(path) for path in self.profiles]

    def http_limits(self) -> HttpLimits:
        """The bounds of the HTTP servers."""
        return HttpLimits(
            header_bytes=self.max_header_bytes,
            header_count=self.max_header_count,
            header_seconds=self.header_timeout_seconds,
            body_bytes=self.max_body_bytes,
            body_seconds=self.body_timeout_seconds,
            bodies_bytes=self.bodies_bytes,
            json_depth=self.max_json_depth,
            json_values=self.max_json_values,
            connections=self.max_connections,
            unread_seconds=self.unread_timeout_seconds,
        )

    def pool_limits(self) -> Limits:
        """The bounds of the task pool."""
        queue = {"queue_tasks": self.queue_limit, "queue_bytes": self.queue_bytes}
        return Limits(
            compute=LaneLimits(self.threads, max(self.threads, self.threads_max), **queue),
            io=LaneLimits(self.io_threads, max(self.io_threads, self.io_threads_max), **queue),
            policy=self.queue_policy,
            ageing_seconds=self.ageing_seconds,
            aged_share=self.aged_share,
            queue_timeout_seconds=self.queue_timeout_seconds,
            task_queue_timeout_seconds=self.task_queue_timeout_seconds,
            run_timeout_seconds=self.run_timeout_seconds,
            max_attempts=self.max_attempts,
            stall_seconds=self.stall_seconds,
            stall_kill_seconds=self.stall_kill_seconds,
            tpot_slo_seconds=self.tpot_slo_seconds,
            preemption=Preemption(self.preempt_factor, self.preempt_wait_seconds),
            tenants=self.tenants,
            results=ResultLimits(bytes=self.result_bytes, ttl_seconds=self.result_seconds),
        )


def load(**overrides: Any) -> Settings:
    """Settings from the environment, ``overrides`` on top. Raises SettingsError."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        field = Settings.model_fields.get(name)
        hint = f" {field.description}" if field is not None else ""
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}): {message}.{hint}"
        ) from None
