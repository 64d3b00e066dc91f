"""What tests give their HTTP clients as ``verify``: they speak plain HTTP to this machine.

An httpx client otherwise reads the list of trusted authorities, 30 ms of processor time for each
client and for each ``httpx.get``: one kubelet's readiness checks took half a core with that.
"""

from __future__ import annotations

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody."""
