"""What the custom resource is called, and how names in it may look. Pure."""

from __future__ import annotations

GROUP = "llmtaskpool.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMTaskPool"
PLURAL = "llmtaskpools"
SINGULAR = "llmtaskpool"
SHORT_NAMES = ("ltp",)
NO_COMMA = r"^[^,\n\r]*$"
"""What becomes part of a worker's `name=source,option=value`, where a comma would end it."""
NAME_MAX = 52
"""Children's names add to it, and a pod's must stay within a host name."""
DNS_1035 = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
