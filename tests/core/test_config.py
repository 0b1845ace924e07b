"""Settings are frozen, hashed, and refused with the key, the fault and the nearest legal word."""

import datetime
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Annotated, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field, PositiveInt, ValidationError, model_validator

from mechsafety.core.config import (
    DAY,
    MAX_PROCESSES,
    MAX_YAML_BYTES,
    FrozenConfig,
    Name,
    StudyConfig,
    apply_overrides,
    config_hash,
    parse_config,
    read_yaml,
)
from mechsafety.core.errors import ConfigError


class Means(FrozenConfig):
    method: Literal["difference_in_means"] = "difference_in_means"


class Components(FrozenConfig):
    method: Literal["principal_components"]
    rank: PositiveInt
    centered: bool = False


class Arm(FrozenConfig):
    model: str
    attacked_layer: int | None = None


class Config(StudyConfig):
    study: Literal["example"]
    direction: Annotated[Means | Components, Field(discriminator="method")] = Means()
    arms: dict[str, Arm] = {}  # noqa: RUF012 # pydantic copies it
    layers: tuple[int, ...] = (1, 2)


RAW = {
    "study": "example",
    "direction": {"method": "principal_components", "rank": 2},
    "arms": {"lat": {"model": "organism:lat", "attacked_layer": 2}},
}


def _fault(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(Config, {**RAW, **changes}, "example.yaml")
    assert str(caught.value).startswith("example.yaml: ")
    return str(caught.value)


def test_settings_are_filled_in_and_frozen() -> None:
    config = parse_config(Config, RAW, "example.yaml")
    assert config.direction == Components(method="principal_components", rank=2)
    assert config.seed == 0
    assert config.runtime.batch_tokens == 16_384
    assert isinstance(config.layers, tuple)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"runtime": {"thread": 2}}, "runtime.thread", "threads"),
        ({"wandb": {"modes": "online"}}, "wandb.modes", "mode"),
        ({"arms": {"lat": {"model": "x", "attack_layer": 2}}}, "attack_layer", "attacked_layer"),
        (
            {"direction": {"method": "principal_components", "rank": 2, "center": True}},
            "center",
            "centered",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one_of_its_own_level(
    changes: dict[str, object], key: str, nearest: str
) -> None:
    message = _fault(**changes)
    assert "unknown key" in message
    assert f"{key}'" in message
    assert f"Did you mean '{nearest}'?" in message
    assert "Expected one of: " in message


def test_in_a_union_only_the_keys_of_the_member_that_was_chosen_are_legal() -> None:
    message = _fault(direction={"method": "difference_in_means", "rank": 2})
    assert "unknown key 'direction.rank'. Expected one of: method." in message
    # The same key with its member is no fault, and a slip beside it is judged by that member.
    message = _fault(direction={"method": "principal_components", "rankk": 2})
    assert "unknown key 'direction.rankk'. Did you mean 'rank'?" in message
    assert "Expected one of: centered, method, rank." in message


def test_a_union_without_its_member_is_told_in_plain_words() -> None:
    message = _fault(direction={"rank": 2})
    assert "key 'direction.method' is missing; it says which kind 'direction' is" in message
    assert "One of: difference_in_means, principal_components." in message
    message = _fault(direction={"method": "principal_component"})
    assert "key 'direction.method': unknown 'principal_component'" in message
    assert "Did you mean 'principal_components'?" in message


def test_a_fault_of_the_whole_is_a_sentence_by_itself() -> None:
    class Needs(FrozenConfig):
        a: int = 0

        @model_validator(mode="after")
        def _a_is_given(self) -> "Needs":
            raise ValueError("give an a")

    with pytest.raises(ConfigError, match=r"^x\.yaml: give an a\.$"):
        parse_config(Needs, {}, "x.yaml")


def test_a_wrong_value_is_shown_with_its_key() -> None:
    message = _fault(direction={"method": "principal_components", "rank": 0})
    assert "rank" in message
    assert "greater than 0" in message
    assert "Got 0" in message
    assert "difference_in_means" in _fault(direction={"method": "difference_in_mean"})


def test_a_default_that_follows_from_a_wrong_value_is_no_fault() -> None:
    message = _fault(runtime={"threads": 0})
    assert "key 'runtime.threads'" in message
    assert "pass_tokens" not in message
    assert "\n" not in message


def test_every_fault_is_reported_at_once() -> None:
    message = _fault(sed=1, layers="all", arms={"lat": {}})
    assert all(word in message for word in ("sed", "layers", "model", "missing"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": True}, "seed"),
        ({"layers": [3, False]}, "layers.1"),
        ({"direction": {"method": "principal_components", "rank": True}}, "direction.rank"),
        ({"arms": {"lat": {"model": "x", "attacked_layer": True}}}, "arms.lat.attacked_layer"),
    ],
)
def test_yes_and_no_are_no_numbers(changes: dict[str, object], key: str) -> None:
    # Pydantic by itself takes them for 1 and 0.
    assert Config.model_validate({**RAW, "seed": True}).seed == 1
    message = _fault(**changes)
    assert f"key '{key}': expected a number. Got " in message
    assert "yes, no, on and off" in message
    # Where a truth value belongs, it is taken.
    centered = {"method": "principal_components", "rank": 2, "centered": True}
    assert parse_config(Config, {**RAW, "direction": centered}, "").direction == (
        Components(method="principal_components", rank=2, centered=True)
    )


class Switch(FrozenConfig):
    on: bool = False
    share: float | None = None
    counts: tuple[tuple[int, ...], ...] = ()
    by_name: dict[Name, float] = {}  # noqa: RUF012 # pydantic copies it
    lists: list[int] = []  # noqa: RUF012
    day: datetime.date = datetime.date(2024, 7, 26)


@pytest.mark.parametrize(
    ("raw", "key", "told"),
    [
        ({"share": "0.5"}, "share", "expected a number. Got the text '0.5'. Leave out the quotes."),
        ({"counts": [[1], [2, "3"]]}, "counts.1.1", "expected a number. Got the text '3'"),
        ({"by_name": {"a": "1"}}, "by_name.a", "expected a number. Got the text '1'"),
        ({"lists": ["1"]}, "lists.0", "expected a number. Got the text '1'"),
        ({"on": "yes"}, "on", "expected true or false. Got 'yes'. Write one of them, without"),
        ({"on": 1}, "on", "expected true or false. Got 1."),
        ({"on": 0.0}, "on", "expected true or false. Got 0.0."),
        ({"on": "off"}, "on", "expected true or false. Got 'off'."),
        ({"day": 0}, "day", "expected a date such as 2026-01-31. Got 0."),
    ],
)
def test_what_is_written_as_another_kind_of_value_is_refused_as_the_schema_does(
    raw: dict[str, object], key: str, told: str
) -> None:
    Switch.model_validate(raw)  # pydantic by itself takes it
    assert not Draft202012Validator(Switch.model_json_schema()).is_valid(raw)
    with pytest.raises(ConfigError) as caught:
        parse_config(Switch, raw, "x.yaml")
    assert f"key '{key}': {told}" in str(caught.value)


def test_values_of_the_right_kind_are_taken_and_come_back_from_a_record() -> None:
    raw = {
        "on": True,
        "share": 1,
        "counts": [[1], [2.0, 3]],
        "by_name": {"a": 1e-3},
        "lists": [1],
        "day": "2026-01-31",
    }
    config = parse_config(Switch, raw, "x.yaml")
    assert config.counts == ((1,), (2, 3))
    assert parse_config(Switch, config.model_dump(mode="json"), "x.yaml") == config
    assert parse_config(Switch, json.loads(config.model_dump_json()), "x.yaml") == config
    assert parse_config(Switch, apply_overrides({}, ["share=1e-3", "on=yes"]), "") == Switch(
        on=True, share=0.001
    )


@pytest.mark.parametrize(
    ("key", "most", "beyond"),
    [
        ("runtime.threads", MAX_PROCESSES, 9_000_000_000_000_000_000),
        ("runtime.workers", MAX_PROCESSES, MAX_PROCESSES + 1),
        ("wandb.seconds", DAY, "1e300"),
    ],
)
def test_what_no_machine_can_do_is_refused_before_it_is_tried(
    key: str, most: float, beyond: object
) -> None:
    parse_config(Config, apply_overrides(RAW, [f"{key}={most}"]), "example.yaml")
    with pytest.raises(ConfigError, match=f"key '{key}': .*less than or equal to {most:.0f}"):
        parse_config(Config, apply_overrides(RAW, [f"{key}={beyond}"]), "example.yaml")
    group, _, name = key.partition(".")
    described = StudyConfig.model_json_schema()["$defs"][group.title()]["properties"][name]
    assert f"at most {most:.0f}" in described["description"].replace(",", "")


def test_a_misspelt_key_that_tells_the_members_of_a_union_apart_is_named() -> None:
    message = _fault(direction={"metod": "principal_components", "rank": 2})
    assert "unknown key 'direction.metod'. Did you mean 'method'?" in message
    assert "One of: difference_in_means, principal_components." in message


def test_a_value_in_place_of_keys_is_told_which_keys_there_are() -> None:
    assert "key 'arms.lat': expected keys and values below it (attacked_layer, model)" in _fault(
        arms={"lat": 5}
    )
    assert "key 'direction': expected keys and values below it" in _fault(direction="mean")
    assert "key 'arms': expected keys and values below it. Got [1]" in _fault(arms=[1])


def test_whatever_arrives_an_error_stays_short_and_printable() -> None:
    long, odd = "x" * 1_000_000, "a\x1b[31m\u202e\ud800\x00b"
    for wrong in (long, odd):
        for changes in (
            {wrong: 1},
            {"seed": wrong},
            {"arms": {wrong: 5}},
            {"direction": {"method": wrong}},
            {"direction": {wrong: 1}},
            {"arms": {"lat": {"model": [wrong] * 3}}},
            dict.fromkeys([f"{wrong}{i}" for i in range(30)], 1),
        ):
            message = _fault(**changes)
            assert len(message) < 4000
            assert message.replace("\n", "").isprintable()


FORBIDDEN = [
    "",
    " ",
    ".",
    "..",
    "a/b",
    "/a",
    "../a",
    "a\\b",
    "a\0",
    "a\nb",
    "\x7f",
    "\u202ea",
    "x" * 101,
]
ALLOWED = ["lat_strong", "Qwen 2.5", "größer", "模型", "...", ".a", "a@seed=1", "x" * 100]


class Named(FrozenConfig):
    arms: dict[Name, int]
    pair: tuple[Name, ...] = ()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_name_that_could_lead_out_of_the_run_folder_is_refused(name: str) -> None:
    for raw in ({"arms": {name: 1}}, {"arms": {}, "pair": ["a", name]}):
        with pytest.raises(ConfigError, match=r"'(arms|pair)\.[^']*': .*name") as caught:
            parse_config(Named, raw, "x.yaml")
        assert len(str(caught.value)) < 400
    with pytest.raises(ValidationError, match="name"):
        StudyConfig(study=name)


@pytest.mark.parametrize("name", ALLOWED)
def test_other_names_are_left_alone(name: str) -> None:
    assert parse_config(Named, {"arms": {name: 1}, "pair": [name]}, "x").arms == {name: 1}


def test_editors_know_of_forbidden_names() -> None:
    checked = Draft202012Validator(Named.model_json_schema())
    for name in ALLOWED:
        assert checked.is_valid({"arms": {name: 1}, "pair": [name]})
    # What is invisible in other scripts is beyond a pattern.
    for name in (name for name in FORBIDDEN if name not in (" ", "\u202ea")):
        assert not checked.is_valid({"arms": {name: 1}})
        assert not checked.is_valid({"arms": {}, "pair": [name]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    assert "finite" in _fault(runtime={"memory_gib": value})


def test_equal_settings_have_equal_hashes_in_any_order_and_process() -> None:
    config = parse_config(Config, RAW, "")
    shuffled = parse_config(Config, dict(reversed(RAW.items())), "")
    spelled = parse_config(Config, {**RAW, "seed": 0, "layers": [1, 2]}, "")
    assert config_hash(config) == config_hash(shuffled) == config_hash(spelled)
    assert config_hash(parse_config(Config, {**RAW, "seed": 1}, "")) != config_hash(config)
    code = (
        "from mechsafety.core.config import StudyConfig, config_hash; "
        "print(config_hash(StudyConfig(study='x')))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == config_hash(StudyConfig(study="x"))


def _write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_yaml_file_is_read(tmp_path: Path) -> None:
    assert read_yaml(_write(tmp_path, "study: example\nlayers: [3, 4]\n")) == {
        "study": "example",
        "layers": [3, 4],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "line 2.*aliases"),
        ("seed: 1\nstudy: x\nseed: 2\n", "line 3.*'seed' appears twice"),
        ("a:\n  b: 1\n  b: 2\n", "line 3.*'b' appears twice"),
        ("- one\n- two\n", "expected keys and values.*got list"),
        ("", "got NoneType"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "line 1.*YAML tags"),
    ],
)
def test_what_is_no_experiment_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


LAUGHS = "\n".join(
    ["study: example", "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 3: YAML aliases"),
        ("study: example\nall: &all {seed: 1}\nruntime:\n  <<: *all\n", "line 4: YAML aliases"),
        ("study: example\nruntime:\n  <<: {seed: 1}\n", "line 3: merge keys"),
        ("study: example\na: " + "[" * 10_000 + "]" * 10_000, "line 2: .*levels of nesting"),
        ("study: example\na: " + "[" * 10_000, "line 2: .*levels of nesting"),
        ("study: example\na: [" + "x, " * 60_000 + "x]", "line 2: .*keys and values"),
    ],
    ids=["laughs", "merge", "inline merge", "deep", "deep and open", "wide"],
)
def test_a_file_that_expands_is_refused_in_little_time_and_memory(
    tmp_path: Path, text: str, message: str
) -> None:
    path = _write(tmp_path, text)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 4
    assert peak < 30_000_000  # the laughs alone would be gigabytes


def test_large_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"more than {MAX_YAML_BYTES:,} bytes"):
        read_yaml(_write(tmp_path, "a: " + "x" * MAX_YAML_BYTES))
    with pytest.raises(ConfigError, match="there is no file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="reading the experiment"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="null"):
        read_yaml(tmp_path / "a\0b.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"study: \xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: byte 8 is not UTF-8.*Save the file"):
        read_yaml(tmp_path / "binary.yaml")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_what_never_ends_is_not_read_to_its_end() -> None:
    assert Path("/dev/zero").stat().st_size == 0  # its size says nothing
    with pytest.raises(ConfigError, match="bytes are no experiment"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize("start", ["\ufeff", "\r\n"])
def test_marks_and_line_ends_of_other_editors_change_nothing(tmp_path: Path, start: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(f"{start}study: example\r\nlayers: [3,\r\n 4]\r\n".encode())
    assert read_yaml(path) == {"study": "example", "layers": [3, 4]}


def test_overrides_are_set_as_yaml_values_at_any_depth() -> None:
    merged = apply_overrides(
        RAW, ["seed=3", "runtime.threads=2", "layers=[5, 6]", "arms.lat.model=a=b", "wandb="]
    )
    assert merged["seed"] == 3
    assert merged["runtime"] == {"threads": 2}
    assert merged["layers"] == [5, 6]
    assert merged["arms"] == {"lat": {"model": "a=b", "attacked_layer": 2}}
    assert merged["wandb"] is None
    assert "seed" not in RAW  # the original stays
    assert json.dumps(RAW["arms"]).count("organism:lat") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("study.name=3", "'study' holds a value"),
        ("layers=[1", "not valid YAML"),
        ("layers=*x", "alias"),
        ("layers=" + "[" * 10_000, "levels of nesting"),
        (".".join("a" * 50) + "=1", "goes down 49 levels"),
        ("runtime..threads=1", "expected key=value"),
        ("seed=" + "9" * 5000, r"--set seed=9+…: line 1: 9+… is larger than any"),
        ("se\x1b[31med", r"se\\x1b\[31med: expected"),
    ],
)
def test_overrides_that_cannot_be_set_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(RAW, [override])
    assert len(str(caught.value)) < 500


def test_the_last_override_wins_and_is_still_checked() -> None:
    merged = apply_overrides(RAW, ["seed=3", "seed=-1"])
    with pytest.raises(ConfigError, match=r"'seed'.*Got -1"):
        parse_config(Config, merged, "example.yaml")
