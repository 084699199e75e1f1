"""One strict reader of YAML, for every file that people write: services, policies, tests, tables, maps.

YAML 1.1 and 1.2 disagree about some plain words: `on`, `010`, `1:30`. They are refused, with the two readings
to choose from, so that no file means two things. Duplicate keys, keys that are no plain values, structures
deeper or larger than any real file, and numbers beyond 64 bits are refused too. Dates stay text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

MAX_DEPTH = 50
MAX_NODES = 100_000  # with every alias counted as the copy that it stands for
MAX_CHARACTERS = 10_000_000
_BOOLEAN_11 = re.compile(r"(?i:yes|no|on|off)")
_OCTAL_11 = re.compile(r"[-+]?0[0-7_]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class YamlError(ValueError):
    """The text is refused; one line. `line`: counted from 1; None: the whole text."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def load_yaml(text: str) -> Any:
    """The values of the text: mappings, lists, text, numbers, true, false, None. Raises YamlError."""
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"is over {MAX_CHARACTERS:,} characters long; give a file that a person wrote")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, [])
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        problem = exc.problem or "is not YAML"
        line = mark.line + 1 if mark else None
        raise YamlError(problem if ";" in problem else f"{problem}; correct it", line) from exc
    except yaml.YAMLError as exc:
        raise YamlError(f"is not YAML ({' '.join(str(exc).split())}); correct it") from exc
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values; depth is limited while nodes are composed, before anything recurses."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in PyYAML
    _depth = 0
    _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._nodes += 1
        if self._nodes > MAX_NODES:  # before the rest is read, which takes longer than any file is worth
            raise YamlError(f"holds over {MAX_NODES:,} values; give a file that a person wrote")
        if self._depth > MAX_DEPTH:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _error(event, f"nested over {MAX_DEPTH} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                hint = "; a template placeholder {{ ... }} was not filled in, render the file first"
                raise _error(key, f"a key is a {key.id}, not a plain value{hint if key.flow_style else ''}")
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise _error(key, f"key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_undefined(self, node: yaml.Node) -> Any:
        raise _error(node, f"the tag {node.tag} is not allowed; write plain values")

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """The value of a scalar without a tag."""
        text = node.value
        if node.style is not None:  # in quotes, or a block
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text[0] in "tT"
        if problem := _ambiguous(text):
            raise _error(node, problem)
        if _INTEGER.fullmatch(text):
            return _integer(node, text)
        if _FLOAT.fullmatch(text):
            return _float(node, text)
        return text


def _ambiguous(text: str) -> str:
    """Why a plain scalar reads differently in YAML 1.1 and 1.2, with both remedies; empty: it does not."""
    if _BOOLEAN_11.fullmatch(text):
        meant = "true" if text.lower() in ("yes", "on") else "false"
        return f"{text} is {meant} in YAML 1.1 and text in 1.2; write {meant}, or '{text}' in quotes"
    if _OCTAL_11.fullmatch(text) or _LEADING_ZERO.fullmatch(text):
        plain = text.replace("_", "").lstrip("+-").lstrip("0") or "0"
        return f"{text} is octal in YAML 1.1 and decimal in 1.2; write {plain}, or '{text}' in quotes"
    if _SEXAGESIMAL.fullmatch(text):
        return (
            f"{text} is a number to base 60 in YAML 1.1 and text in 1.2; write 1h30m, or '{text}' in quotes"
        )
    return ""


def _integer(node: yaml.Node, text: str) -> int:
    plain = text.replace("_", "")
    # The length first: Python refuses to convert thousands of digits, and a 64-bit number has at most 20.
    if len(plain) > 24 or not -(2**63) <= (value := int(plain, 16 if "0x" in plain else 10)) < 2**63:
        raise _error(node, f"a number of {len(plain)} digits is beyond 64 bits; write a smaller one")
    return value


def _float(node: yaml.Node, text: str) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(value) and "inf" not in text.lower():
        raise _error(node, f"{text[:20]} is beyond the largest number, 1.8e308; write a smaller one")
    return value


def _count(node: yaml.Node, known: dict[int, int], open_nodes: list[int]) -> int:
    """Nodes under this one, aliases counted as copies. Raises for too many, and for one inside itself."""
    if id(node) in open_nodes:
        raise _error(node, "an alias stands for a value that contains it")
    if id(node) not in known:
        open_nodes.append(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [one for pair in node.value for one in pair]
        total = 1
        for child in children:
            total += _count(child, known, open_nodes)
            if total > MAX_NODES:
                raise _error(child, f"more than {MAX_NODES:,} values once its aliases are written out")
        known[id(node)] = total
        open_nodes.pop()
    return known[id(node)]


def _error(node: Any, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_plain)
_Loader.add_constructor(None, _Loader.construct_undefined)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<"), ["<"])
for _tag in ("binary", "timestamp", "omap", "pairs", "set", "int", "float", "bool", "null"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_undefined)
