# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# Reason: the stubs of PyYAML's loader leave its events and constructors untyped.
"""YAML as experiments use it: keys that are text, plain values, and nothing that expands."""

import re
from typing import Any, Final, cast

import yaml

from mechsafety.core.errors import ConfigError, printable, shown

MAX_VALUES: Final = 10_000
"""Keys and values of one text; the longest experiment here has 500. PyYAML reads about 15,000 a
second."""

MAX_DEPTH: Final = 40
"""Levels of nesting; experiments have up to 6. Reading goes down recursively."""

MAX_INTEGER: Final = 2**63 - 1
"""Beyond it, arithmetic with floats overflows, and Python refuses to write an integer out."""

_TAG: Final = "tag:yaml.org,2002:"
_LEFT_OUT: Final = {f"{_TAG}{kind}" for kind in ("timestamp", "value", "int", "float")}

# Every text that fits is a number of Python's once `_` is taken out.
_INT: Final = re.compile(
    r"[-+]?(0b_*[01][01_]*|0o_*[0-7][0-7_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)$"
)
_FLOAT: Final = re.compile(
    r"([-+]?([0-9][0-9_]*(\.[0-9_]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
    r"|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$"
)
_BASES: Final = {"0b": 2, "0o": 8, "0x": 16}


class _PlainLoader(yaml.SafeLoader):
    """Scalars, lists and mappings of YAML 1.1; dates stay text, as every other word does.

    Numbers are those of YAML 1.2 and JSON, which editors read: `1e-3` is one, `12:30` is text, and
    `010` is ten. As in 1.1, `_` may part digits, and `0b11` is three.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 # PyYAML's own, without some of them
        first: [(tag, shape) for tag, shape in known if tag not in _LEFT_OUT]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0

    def fetch_more_tokens(self) -> None:
        try:
            super().fetch_more_tokens()
        except (ValueError, OverflowError):
            raise ConfigError(
                f"line {self.line + 1}: it is not valid YAML: an escape such as \\UFFFFFFFF is no "
                "character (they end at \\U0010FFFF), or the version after %YAML is none."
            ) from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = cast("Any", self.peek_event())
        line = event.start_mark.line + 1
        if isinstance(event, yaml.events.AliasEvent):
            raise ConfigError(
                f"line {line}: YAML aliases (*name) are not read in experiments, because a few "
                "bytes of them can expand to gigabytes. Write the value out."
            )
        if getattr(event, "tag", None) is not None:
            raise ConfigError(
                f"line {line}: YAML tags ({printable(event.tag)}) are not read in experiments: a "
                "value is what it looks like. Leave the tag out, and put text in quotes."
            )
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError(
                f"line {line}: more than {MAX_VALUES:,} keys and values are no experiment. Put "
                "long lists into files of their own."
            )
        if self._depth == MAX_DEPTH:
            raise ConfigError(
                f"line {line}: more than {MAX_DEPTH} levels of nesting are no experiment. Look for "
                "a bracket or an indent that is never closed."
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                raise ConfigError(
                    f"line {line}: merge keys (<<) are not read in experiments. Write the keys out."
                )
            key = cast("object", self.construct_object(key_node, deep=True))
            if not isinstance(key, str):
                raise ConfigError(
                    f"line {line}: the key {shown(key)} is no text: YAML reads numbers, null, and "
                    "the words yes, no, on and off as values. Put it in quotes."
                )
            if key in seen:
                raise ConfigError(
                    f"line {line}: key {shown(key)} appears twice; YAML would silently keep the "
                    "last. Remove one."
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = cast("str", node.value).replace("_", "")
        digits = text.lstrip("+-")
        base = _BASES.get(digits[:2], 10)
        digits = (digits if base == 10 else digits[2:]).lstrip("0") or "0"
        # More than 64 digits are too many in any base, and Python refuses to read thousands.
        number = int(digits, base) if len(digits) <= 64 else MAX_INTEGER + 1
        if number > MAX_INTEGER:
            raise ConfigError(
                f"line {node.start_mark.line + 1}: {printable(node.value)} is larger than any "
                f"number of an experiment ({MAX_INTEGER:.1e})."
            )
        return -number if text.startswith("-") else number

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = cast("str", super().construct_yaml_str(node))
        try:
            # JSON, which is YAML, writes a character beyond 16 bits as two escapes.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ConfigError(
                f"line {node.start_mark.line + 1}: {shown(text)} holds half a character: \\ud800 "
                "to \\udfff come in pairs."
            ) from None


_PlainLoader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_PlainLoader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_PlainLoader.add_constructor(f"{_TAG}str", _PlainLoader.construct_yaml_str)
_PlainLoader.add_constructor(f"{_TAG}int", _PlainLoader.construct_yaml_int)


def plain_yaml(text: str) -> object:
    """What a YAML text says: text, numbers, truth values, null, and lists and mappings of these.

    Raises:
        ConfigError: Not YAML, or with aliases, tags, merge keys, repeated keys, keys that are no
            text, more than `MAX_VALUES` values or `MAX_DEPTH` levels; names the line.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        told = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}it is not valid YAML: {printable(told, 300)}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"line {line}: it is not valid YAML: the character {shown(text[error.position])} is no "
            "part of a text. Remove it."
        ) from None
