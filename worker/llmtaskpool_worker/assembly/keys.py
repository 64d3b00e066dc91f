"""Who may ask: the keys of the data port, and whose they are; the tokens of the control port."""

from __future__ import annotations

from collections.abc import Callable

from llmtaskpool_worker.assembly.settings import Settings
from llmtaskpool_worker.http_api.auth import Keys, KeysOfTenants, KeysUnreadable


def keys_of(settings: Settings, clock: Callable[[], float]) -> tuple[KeysOfTenants, Keys]:
    """The keys of the data port and the tokens of the control port. Raises KeysUnreadable."""
    others = Keys(
        settings.api_keys, settings.api_keys_file, setting="LLMTASKPOOL_API_KEYS_FILE", clock=clock
    )
    folder, named = settings.tenant_keys_dir, {}
    for name in settings.tenants.named:
        if folder is None:
            raise KeysUnreadable(
                f"LLMTASKPOOL_TENANTS names {name}, whose keys are nowhere: put them, one a line, "
                "into a file of that name in a folder, and name it by LLMTASKPOOL_TENANT_KEYS_DIR"
            )
        setting = f"LLMTASKPOOL_TENANT_KEYS_DIR, by its file {name},"
        named[name] = Keys((), folder / name, setting=setting, clock=clock)
    tokens = Keys(
        settings.control_tokens,
        settings.control_tokens_file,
        setting="LLMTASKPOOL_CONTROL_TOKENS_FILE",
        clock=clock,
    )
    return KeysOfTenants(named, others, settings.tenants), tokens
