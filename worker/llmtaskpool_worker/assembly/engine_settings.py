"""Settings that reach engine processes, and libraries, by environment variables alone."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path

from llmtaskpool_worker.assembly.settings import Settings, SettingsError

_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def tell_engines(settings: Settings) -> None:
    """Set what engine processes read (engines/environment.py). Raises SettingsError."""
    values = {
        "LLMTASKPOOL_CACHE_DIR": settings.cache_dir,
        "LLMTASKPOOL_CACHE_BYTES": settings.cache_bytes,
        "LLMTASKPOOL_HUB_TOKEN_FILE": settings.hub_token_file,
        "LLMTASKPOOL_HUB_TOKENS_DIR": settings.hub_tokens_dir,
    }
    os.environ.update({name: str(value) for name, value in values.items() if value is not None})
    if settings.trusted_ca_file is not None:
        bundle = str(trusted(settings.trusted_ca_file))
        os.environ.update(dict.fromkeys(_CERTIFICATES, bundle))


def trusted(extra: Path) -> Path:
    """A file of the public certificate authorities and those of ``extra``.

    A library takes one file in the place of its own: what is to be added needs both in it.

    Raises:
        SettingsError: ``extra`` can't be read, or holds no certificate.
    """
    import certifi

    try:
        added = extra.read_text("utf-8")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=added)
    except (OSError, ValueError, ssl.SSLError) as error:
        why = getattr(error, "strerror", None) or getattr(error, "reason", None) or "no text"
        raise SettingsError(
            f"LLMTASKPOOL_TRUSTED_CA_FILE: it can't be used ({why}): put certificates in PEM form "
            "into it, or unset it"
        ) from None
    public = Path(os.environ.get("SSL_CERT_FILE") or certifi.where()).read_text("utf-8")
    with tempfile.NamedTemporaryFile(
        "w", prefix="llmtaskpool-ca-", suffix=".pem", delete=False, encoding="utf-8"
    ) as made:
        made.write(f"{public}\n{added}\n")
    return Path(made.name)
