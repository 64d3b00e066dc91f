"""Settings that engine processes and libraries read from the environment."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi
import pytest
from llmtaskpool_worker.assembly import settings
from llmtaskpool_worker.assembly.engine_settings import tell_engines, trusted
from llmtaskpool_worker.assembly.settings import SettingsError
from rig.pki import Authority


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority of our own, in PEM form."""
    return Authority(tmp_path_factory.mktemp("pki")).certificate


OURS = "llmtaskpool-rig-ca"


def names_in(bundle: Path) -> set[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(bundle))
    return {
        value
        for one in context.get_ca_certs()
        for part in one["subject"]
        for key, value in part
        if key == "commonName"
    }


def test_an_authority_of_ones_own_is_trusted_beside_the_public_ones(
    extra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    found = names_in(trusted(extra))
    assert OURS in found
    assert found >= names_in(Path(certifi.where()))


@pytest.mark.parametrize("content", ["", "no certificate", None])
def test_what_is_no_certificate_is_told(content: str | None, tmp_path: Path) -> None:
    extra = tmp_path / "ca.crt"
    if content is not None:
        extra.write_text(content)
    with pytest.raises(SettingsError, match="LLMTASKPOOL_TRUSTED_CA_FILE: it can't be used"):
        trusted(extra)


def test_engines_and_libraries_are_told(
    extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("LLMTASKPOOL_CACHE_DIR", "LLMTASKPOOL_CACHE_BYTES", "LLMTASKPOOL_HUB_TOKEN_FILE")
    for name in (*names, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    chosen = settings.load(
        cache_dir=tmp_path, cache_bytes=5, hub_token_file=tmp_path / "t", trusted_ca_file=extra
    )
    tell_engines(chosen)
    assert [os.environ[name] for name in names] == [str(tmp_path), "5", str(tmp_path / "t")]
    assert OURS in names_in(Path(os.environ["SSL_CERT_FILE"]))
    assert os.environ["SSL_CERT_FILE"] == os.environ["REQUESTS_CA_BUNDLE"]
