"""Who may ask: the keys of the data port and the tokens of the control port."""

from __future__ import annotations

from collections.abc import Callable

from llmtaskpool_worker.assembly.settings import Settings
from llmtaskpool_worker.http_api.auth import Keys


def keys_of(settings: Settings, clock: Callable[[], float]) -> tuple[Keys, Keys]:
    """The keys of the data port and the tokens of the control port. Raises KeysUnreadable."""
    return (
        Keys(
            settings.api_keys,
            settings.api_keys_file,
            setting="LLMTASKPOOL_API_KEYS_FILE",
            clock=clock,
        ),
        Keys(
            settings.control_tokens,
            settings.control_tokens_file,
            setting="LLMTASKPOOL_CONTROL_TOKENS_FILE",
            clock=clock,
        ),
    )
