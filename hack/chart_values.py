"""The table of values in the chart's README, made from values.yaml and its schema. Pure.

A value's meaning is the `# -- ` comment right above its key (as helm-docs has it, so its users know
it), or else the schema's `description`. A value without a meaning, or that the schema doesn't know,
is an error: none is forgotten. A map whose keys the schema lists is a line in bold and then its
keys; every other value is one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

Schema = dict[str, Any]

BEGIN = "<!-- Values: written by `make chart` from values.yaml and values.schema.json. -->"
END = "<!-- End of the values. -->"
LONGEST_DEFAULT = 80
"""Characters of a default that the table shows; for a longer one it points at values.yaml."""

_HEAD = ["| value | type | default | meaning |", "| --- | --- | --- | --- |"]
_MEANING = "# -- "


def table(values_text: str, schema: Schema) -> str:
    """One line for each value, in the order of values.yaml. Raises ValueError: which lacks what."""
    root: Any = yaml.compose(values_text, Loader=yaml.SafeLoader)
    lines = values_text.splitlines()
    rows = _rows(root, yaml.safe_load(values_text), schema, lines, "")
    return "\n".join([*_HEAD, *rows])


def with_table(page: str, values_text: str, schema: Schema) -> str:
    """The page with what stands between its two marks written anew. Raises ValueError."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}, once and in this order")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{table(values_text, schema)}\n\n{END}{after}"


def _rows(
    node: yaml.MappingNode, values: dict[str, Any], schema: Schema, lines: list[str], path: str
) -> Iterator[str]:
    for key, child in node.value:
        name, value = f"{path}{key.value}", values[key.value]
        known = schema["properties"].get(key.value)
        if known is None:
            raise ValueError(f"{name} is not in values.schema.json")
        meaning = _comment(lines, key.start_mark) or known.get("description", "")
        if not meaning:
            raise ValueError(f"{name} has no meaning: write `{_MEANING}…` above it in values.yaml")
        if value and "properties" in known:
            yield _row(f"**`{name}`**", "", "", meaning)
            yield from _rows(child, value, known, lines, f"{name}.")
        else:
            yield _row(f"`{name}`", _type(known), _default(value), meaning)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _comment(lines: list[str], key: yaml.Mark) -> str:
    """What the comment that ends in the line above the key says after its last `# -- `."""
    found: list[str] = []
    indent = " " * key.column
    for line in reversed(lines[: key.line]):
        if not line.startswith(f"{indent}#"):
            break
        text = line[key.column :]
        if text.startswith(_MEANING):
            return " ".join([text.removeprefix(_MEANING).strip(), *found])
        found.insert(0, text.removeprefix("#").strip())
    return ""


def _default(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "see values.yaml"


def _type(schema: Schema, plural: str = "") -> str:
    """What may be given, in words: `list of strings matching …`, `integer from 0 to 10`."""
    if "enum" in schema:
        return "one of " + ", ".join(f"`{one}`" for one in schema["enum"])
    if "oneOf" in schema:
        return ", or ".join(_type(one, plural) for one in schema["oneOf"])
    given = schema["type"]
    names = given if isinstance(given, list) else [given]
    text = " or ".join(f"{name}{plural}" for name in names if name != "null")
    if "items" in schema:
        text = f"list of {_type(schema['items'], 's')}"
    elif isinstance(schema.get("additionalProperties"), dict):
        text = f"map of {_type(schema['additionalProperties'], 's')}"
    elif "properties" in schema:
        text += " with " + ", ".join(f"`{name}`" for name in schema["properties"])
    return text + _bounds(schema) + (", or null" if "null" in names else "")


def _bounds(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    text = f" matching `{schema['pattern']}`" if "pattern" in schema else ""
    if least is not None and most is not None:
        return f"{text} from {least:,} to {most:,}"
    if most is not None:
        return f"{text} of at most {most:,}"
    return text if least is None else f"{text} of at least {least:,}"
