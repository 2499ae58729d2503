"""Configuration files as users write them, wrong ones above all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from common.config import Config, dump_config, load_config
from common.errors import ConfigError
from common.training.config import ExperimentConfig
from tests.budget import examples


class Optimizer(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    min_lr: float | None = None


class Settings(Config):
    name: str = "default"
    label: str | None = None
    steps: int = 10
    fast: bool = False
    kind: Literal["small", "large"] = "small"
    path: Path | None = None
    prompts: tuple[str, ...] = ("",)
    optimizer: Optimizer = Optimizer()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Settings:
    return load_config(write(folder, "main.yaml", text), Settings, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return caught.value


def test_defaults_then_extended_files_in_order_then_the_file_then_the_command_line(
    tmp_path: Path,
) -> None:
    write(tmp_path, "first.yaml", "name: first\nsteps: 1\nlabel: first\noptimizer: {lr: 0.1}\n")
    write(tmp_path, "second.yaml", "steps: 2\nlabel: second\noptimizer: {betas: [0.1, 0.2]}\n")
    text = "extends: [first.yaml, second.yaml]\nlabel: file\nkind: large\n"
    config = load(tmp_path, text, "kind=small", "optimizer.min_lr=0.5")
    assert config.name == "first"  # only the first sets it
    assert config.steps == 2  # the second extended file wins over the first
    assert config.label == "file"  # the file wins over both
    assert config.kind == "small"  # the command line wins over the file
    assert config.fast is False  # nobody sets it
    assert config.optimizer == Optimizer(lr=0.1, betas=(0.1, 0.2), min_lr=0.5)  # merged, by key


def test_extends_is_looked_up_from_the_file_that_says_it_and_may_be_shared(tmp_path: Path) -> None:
    write(tmp_path, "base/common.yaml", "steps: 3\n")
    write(tmp_path, "base/a.yaml", "extends: common.yaml\nname: a\n")
    write(tmp_path, "base/b.toml", 'extends = "common.yaml"\nlabel = "b"\n')
    config = load(tmp_path, "extends: [base/a.yaml, base/b.toml]\n")  # a diamond is no circle
    assert (config.steps, config.name, config.label) == (3, "a", "b")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_extends_is_shown_not_followed(tmp_path: Path, length: int) -> None:
    for i in range(length):
        write(tmp_path, f"c{i}.yaml", f"extends: c{(i + 1) % length}.yaml\n")
    with pytest.raises(ConfigError, match="cycle") as caught:
        load_config(tmp_path / "c0.yaml", Settings)
    for i in range(length):
        assert f"c{i}.yaml" in str(caught.value)


@pytest.mark.parametrize("value", ["3", "true", "{a: b}", "[missing.yaml]", "[3]"])
def test_extends_that_names_no_file_is_a_config_error(tmp_path: Path, value: str) -> None:
    refusal(tmp_path, f"extends: {value}\n")


def test_toml_and_yaml_give_equal_configurations(tmp_path: Path) -> None:
    yaml = write(
        tmp_path,
        "a.yaml",
        "name: x\nsteps: 5\nfast: true\noptimizer: {lr: 3e-4, betas: [0.5, 1]}\n",
    )
    toml = write(
        tmp_path,
        "a.toml",
        'name = "x"\nsteps = 5\nfast = true\n[optimizer]\nlr = 3e-4\nbetas = [0.5, 1]\n',
    )
    assert load_config(yaml, Settings) == load_config(toml, Settings)


def test_toml_and_yaml_extend_one_another_and_take_the_same_overrides(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: base\nlabel: base\noptimizer: {lr: 0.5, min_lr: 0.1}\n")
    middle = """extends = "base.yaml"  # a comment
label = "${oc.decode:null}"
prompts = ["a", "b"]
optimizer.min_lr = "${optimizer.lr}"
"""
    toml = write(tmp_path, "middle.toml", middle)
    last = write(tmp_path, "last.yaml", "extends: middle.toml\nsteps: 7\n")
    for path, steps in ((toml, 10), (last, 7)):
        config = load_config(path, Settings, ["optimizer.lr=3e-4", "fast=true"])
        assert (config.name, config.label, config.prompts) == ("base", None, ("a", "b"))
        assert (config.steps, config.fast) == (steps, True)
        assert config.optimizer == Optimizer(lr=3e-4, min_lr=3e-4)
        again = write(tmp_path, "again.yaml", dump_config(config))
        assert load_config(again, Settings) == config


def test_toml_from_an_editor_that_marks_its_utf8_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbfname = "x"\n')
    assert load_config(tmp_path / "a.toml", Settings).name == "x"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[optimizer]\nlrr = 1\n", "unknown key 'optimizer.lrr'; did you mean 'lr'?"),
        ("[optimizer]\nlr = true\n", "optimizer.lr: expected a number, got true"),
        ("steps = 1\nsteps = 2\n", "line 2"),
    ],
)
def test_a_mistake_in_toml_is_told_as_one_in_yaml(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "a.toml", text), Settings)
    assert reason in caught.value.message and "a.toml" in caught.value.message


@pytest.mark.parametrize("written", ["3e-4", "3E-4", "0.0003", "3.0e-4", ".0003"])
def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, f"optimizer: {{lr: {written}}}\n").optimizer.lr == 0.0003
    assert load(tmp_path, "", f"optimizer.lr={written}").optimizer.lr == 0.0003


@pytest.mark.parametrize(
    "text",
    ["007", "on", "null", "1e3", "0x10", "true", "a=b", "[x", "{", "x: y", "# no", "", " a "],
)
def test_a_text_field_takes_an_override_as_typed(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, "", f"name={text}").name == text


def test_an_optional_text_field_takes_null_and_text(tmp_path: Path) -> None:
    assert load(tmp_path, "label: x\n", "label=null").label is None
    assert load(tmp_path, "label: x\n", "label=007").label == "007"


def test_a_list_of_texts_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    assert load(tmp_path, "", "prompts=[one,two]").prompts == ("one", "two")


@pytest.mark.parametrize("name", ["corpus", "123", "1e3", "a b.txt"])
def test_a_path_can_be_given_on_the_command_line(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, "", f"path={name}").path == Path(name)


def test_interpolation_follows_an_override(tmp_path: Path) -> None:
    text = "optimizer: {lr: 0.1, min_lr: '${optimizer.lr}'}\n"
    assert load(tmp_path, text, "optimizer.lr=0.5").optimizer.min_lr == 0.5
    assert load(tmp_path, "steps: 7\n", "optimizer.min_lr=${steps}").optimizer.min_lr == 7


@pytest.mark.parametrize(
    "text", ["label: ${nowhere}\n", "label: ${name}\nname: ${label}\n", "label: ${\n"]
)
def test_an_interpolation_that_leads_nowhere_is_a_config_error(tmp_path: Path, text: str) -> None:
    assert "label" in str(refusal(tmp_path, text))


@pytest.mark.parametrize("value", ["true", "yes", "on", "false", "off"])
def test_yes_and_no_are_never_numbers(tmp_path: Path, value: str) -> None:
    for key in ("steps", "optimizer.lr", "optimizer.min_lr"):
        assert key in str(refusal(tmp_path, "", f"{key}={value}"))


def test_yes_and_no_are_no_numbers_inside_a_list_either(tmp_path: Path) -> None:
    assert "betas" in str(refusal(tmp_path, "optimizer: {betas: [true, 0.9]}\n"))


@pytest.mark.parametrize("value", ["abc", "1.5", "[1]", "{a: 1}", "null", "nan", "1e400"])
def test_a_whole_number_takes_nothing_else(tmp_path: Path, value: str) -> None:
    error = refusal(tmp_path, f"steps: {value}\n")
    assert "steps" in str(error) and "main.yaml" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "inf"])
def test_infinite_numbers_are_refused(tmp_path: Path, value: str) -> None:
    assert "optimizer.lr" in str(refusal(tmp_path, f"optimizer: {{lr: {value}}}\n"))


def test_an_unknown_key_is_told_with_its_file_and_the_nearest_name(tmp_path: Path) -> None:
    message = str(refusal(tmp_path, "optimizer: {leaning_rate: 1, lrr: 0.1}\nnmae: x\n"))
    assert f"{tmp_path / 'main.yaml'}: unknown key 'optimizer.lrr'; did you mean 'lr'?" in message
    assert "unknown key 'nmae'; did you mean 'name'?" in message
    assert len(message.splitlines()) == 3, "one line per problem"


def test_an_unknown_key_in_an_extended_file_is_told_with_that_file(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "nmae: x\n")
    message = str(refusal(tmp_path, "extends: base.yaml\nsteps: 1\n"))
    assert "base.yaml" in message and "main.yaml" not in message


def test_an_unknown_key_in_an_argument_is_told_with_that_argument(tmp_path: Path) -> None:
    message = str(refusal(tmp_path, "", "optimizer.lrr=1"))
    assert "argument 'optimizer.lrr=1'" in message and "'lr'" in message
    message = str(refusal(tmp_path, "", "optimiser.lr=1"))
    assert "argument 'optimiser.lr=1'" in message and "'optimizer'" in message


def test_a_wrong_value_is_told_with_the_argument_that_replaced_a_good_one(tmp_path: Path) -> None:
    message = str(refusal(tmp_path, "steps: 1\noptimizer: {lr: 0.1}\n", "optimizer.lr=-1"))
    assert "argument 'optimizer.lr=-1'" in message and "main.yaml" not in message


@pytest.mark.parametrize(
    "argument",
    ["steps", "=3", "--steps=3", "", "steps =3", "optimizer..lr=3", "steps=[1", "name.x=3"],
)
def test_a_malformed_override_is_named(tmp_path: Path, argument: str) -> None:
    assert f"argument '{argument}'" in str(refusal(tmp_path, "", argument))


def test_an_empty_override_of_a_number_is_refused(tmp_path: Path) -> None:
    assert "argument 'steps='" in str(refusal(tmp_path, "", "steps="))


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "quickstart.yaml", "")
    with pytest.raises(ConfigError, match="no configuration file") as caught:
        load_config(tmp_path / "quikstart.yaml", Settings)
    assert "quickstart.yaml" in caught.value.hint
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "no_such_folder" / "x.yaml", Settings)
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path, Settings)  # a folder


def test_the_current_folder_comes_before_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "here/c.yaml", "name: here\n")
    write(tmp_path, "project/c.yaml", "name: project\n")
    write(tmp_path, "project/d.yaml", "name: project\n")
    monkeypatch.chdir(tmp_path / "here")
    assert load_config("c.yaml", Settings, search=[tmp_path / "project"]).name == "here"
    assert load_config("d.yaml", Settings, search=[tmp_path / "project"]).name == "project"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.yaml", b"- 1\n- 2\n"),
        ("text.yaml", b"hello\n"),
        ("broken.yaml", b"a: [1\nb: }\n"),
        ("tab.yaml", b"a:\n\t- 1\n"),
        ("twice.yaml", b"steps: 1\nsteps: 2\n"),
        ("latin.yaml", "name: é\n".encode("latin-1")),
        ("number.yaml", b"1: 2\n"),
        ("date.toml", b"name = 1979-05-27\n"),
        ("broken.toml", b"name = \n"),
        ("zeros.yaml", bytes(100)),
        ("python.yaml", b"name: !!python/object/apply:os.getcwd []\n"),
        ("settings.json", b"{}"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        load_config(path, Settings)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Settings() == load(tmp_path, "# a comment only\n")


def test_a_section_can_be_neither_a_number_nor_empty(tmp_path: Path) -> None:
    assert "optimizer" in str(refusal(tmp_path, "optimizer: 3\n"))
    assert "optimizer" in str(refusal(tmp_path, "optimizer:\n"))
    write(tmp_path, "base.yaml", "optimizer: {lr: 1}\n")
    assert "main.yaml" in str(refusal(tmp_path, "extends: base.yaml\noptimizer: [1, 2]\n"))


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        Settings().steps = 3  # type: ignore[misc]


texts = st.text(max_size=20) | st.sampled_from(
    ["007", "3e-4", "null", "on", "~", "1:30", "0x1F", "1_000", "\\", "{}", "2020-01-01", "a: b #"]
)
texts = texts.filter(lambda text: "${" not in text and text != "???")


@given(
    name=texts,
    label=st.none() | texts,
    prompts=st.lists(texts, max_size=3),
    steps=st.integers(),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
@examples(60)
def test_a_dumped_configuration_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    label: str | None,
    prompts: list[str],
    steps: int,
    lr: float,
) -> None:
    config = Settings(
        name=name, label=label, prompts=tuple(prompts), steps=steps, optimizer=Optimizer(lr=lr)
    )
    path = write(tmp_path_factory.getbasetemp(), "dumped.yaml", dump_config(config))
    assert load_config(path, Settings) == config


@pytest.mark.parametrize("text", ["${name}", "${HOME}/x", "\\${x}", "a ${b} c ${", "???"])
def test_text_that_looks_like_an_interpolation_survives_a_dump(tmp_path: Path, text: str) -> None:
    config = Settings(name=text)
    assert load(tmp_path, dump_config(config)) == config


class Range(Config):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def test_two_values_that_do_not_fit_are_told_with_the_argument_that_came_last(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "range.yaml", "low: 2\nhigh: 5\n")
    with pytest.raises(ConfigError, match="low 7 is above high 5"):
        load_config(path, Range, ["low=7"])

    class Outer(Config):
        range: Range = Range()

    path = write(tmp_path, "outer.yaml", "range: {low: 2, high: 5}\n")
    with pytest.raises(ConfigError, match=r"argument 'range\.low=7'.*low 7 is above high 5"):
        load_config(path, Outer, ["range.low=7"])


class Numbers(Config):
    whole: int = 0
    real: float = 0.0
    text: str = ""
    texts: tuple[str, ...] = ()
    flag: bool = False
    choice: Literal["auto", True, False] = "auto"
    factors: dict[str, float] = Field(default_factory=dict)


REFUSED = object()


@pytest.mark.parametrize(
    ("written", "whole", "real"),
    [
        ("010", 10, 10.0),
        ("08", 8, 8.0),
        ("00", 0, 0.0),
        ("+5", 5, 5.0),
        ("0x10", 16, 16.0),
        ("0o17", 15, 15.0),
        ("1_000", 1000, 1000.0),
        ("1e3", 1000, 1000.0),
        ("1.", 1, 1.0),
        (".5", REFUSED, 0.5),
        ("12e-1", REFUSED, 1.2),
        ("0b11", REFUSED, REFUSED),
        ("-0x10", REFUSED, REFUSED),
        ("1:30", REFUSED, REFUSED),
        ("190:20:30.5", REFUSED, REFUSED),
        ("on", REFUSED, REFUSED),
        ("off", REFUSED, REFUSED),
        ("true", REFUSED, REFUSED),
        ("2024-01-01", REFUSED, REFUSED),
        ("=", REFUSED, REFUSED),
        ("~", REFUSED, REFUSED),
        ("1__0", REFUSED, REFUSED),
        ("1,000", REFUSED, REFUSED),
    ],
)
def test_numbers_are_those_of_yaml_1_2_in_files_and_on_the_command_line(
    tmp_path: Path, written: str, whole: object, real: object
) -> None:
    for key, wanted in (("whole", whole), ("real", real)):
        in_file = write(tmp_path, "a.yaml", f"{key}: {written}\n"), []
        typed = write(tmp_path, "b.yaml", ""), [f"{key}={written}"]
        for path, overrides in (in_file, typed):
            if wanted is REFUSED:
                with pytest.raises(ConfigError) as caught:
                    load_config(path, Numbers, overrides)
                assert key in caught.value.message and "\n" not in caught.value.message
            else:
                value = getattr(load_config(path, Numbers, overrides), key)
                assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    "written", ["010", "1_000", "0x10", "1e3", "1.50", "1:30", "on", "no", "2024-01-01", "="]
)
def test_a_text_is_what_was_written_in_a_file_too(tmp_path: Path, written: str) -> None:
    text = f"text: {written}\ntexts: [{written}]\nfactors: {{{written}: 1}}\n"
    config = load_config(write(tmp_path, "a.yaml", text), Numbers)
    assert (config.text, config.texts, [*config.factors]) == (written, (written,), [written])
    again = write(tmp_path, "again.yaml", dump_config(config))
    assert load_config(again, Numbers) == config


@pytest.mark.parametrize("written", ["yes", "on", "On", "true", "no", "OFF", "false"])
def test_yes_and_no_are_booleans_where_booleans_are_expected(tmp_path: Path, written: str) -> None:
    wanted = written.lower() in ("yes", "on", "true")
    config = load_config(
        write(tmp_path, "a.yaml", f"flag: {written}\n"), Numbers, [f"choice={written}"]
    )
    assert config.flag is wanted and config.choice is wanted


def test_an_anchor_is_merged_and_an_override_changes_one_of_its_uses(tmp_path: Path) -> None:
    text = "factors: &a {x: 1, y: 2}\nmore: {<<: *a, y: 3}\nalso: *a\n"

    class Anchored(Config):
        factors: dict[str, int]
        more: dict[str, int]
        also: dict[str, int]

    config = load_config(write(tmp_path, "a.yaml", text), Anchored, ["factors.x=7"])
    assert config == Anchored(
        factors={"x": 7, "y": 2}, more={"x": 1, "y": 3}, also={"x": 1, "y": 2}
    )


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "more than 1,048,576 values and characters"),
        (MERGED_LAUGHS, "unknown key 'a0'"),  # merging doubles nothing
        ("name: &a [*a]\n", "recursive"),
        ("name: " + "[" * 5000, "nested too deeply"),
        ("name: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("name: x" + "x" * 2**20, "larger than 1,048,576 bytes"),
        (
            "label: x0123456789\n"
            + "".join(f"b{i}: '${{b{i + 1}}}${{b{i + 1}}}'\n" for i in range(60))
            + "b60: abc\n",
            "grows without bounds",
        ),
        (
            "".join(f"b{i}: ['${{b{i + 1}}}', '${{b{i + 1}}}']\n" for i in range(60))
            + "b60: abc\n",
            "more than 1,048,576 values and characters",
        ),
        (
            "".join(f"b{i}: ${{b{i + 1}}}\n" for i in range(5000)) + "b5000: 1\n",
            "interpolations are nested too deeply",
        ),
    ],
    ids=["aliases", "merges", "itself", "brackets", "deep", "huge", "texts", "lists", "chain"],
)
def test_a_small_file_that_means_a_huge_one_is_refused_in_one_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    error = refusal(tmp_path, text)
    assert reason in error.message and len(error.message.splitlines()[0]) < 400


def test_files_that_extend_the_same_ones_twice_are_read_once_each(tmp_path: Path) -> None:
    write(tmp_path, "l0.yaml", "steps: 3\n")
    for i in range(1, 60):  # 2^60 ways from the last to the first
        write(tmp_path, f"l{i}.yaml", f"extends: [l{i - 1}.yaml, l{i - 1}.yaml]\n")
    assert load_config(tmp_path / "l59.yaml", Settings).steps == 3


def test_what_was_extended_last_wins_and_is_named_also_in_a_diamond(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "steps: wrong\n")
    write(tmp_path, "a.yaml", "extends: base.yaml\nsteps: 1\n")
    write(tmp_path, "b.yaml", "extends: base.yaml\n")
    assert "base.yaml" in refusal(tmp_path, "extends: [a.yaml, b.yaml]\n").message
    assert load(tmp_path, "extends: [b.yaml, a.yaml]\n").steps == 1


def test_a_chain_of_very_many_files_is_refused(tmp_path: Path) -> None:
    for i in range(300):
        write(tmp_path, f"c{i}.yaml", f"extends: c{i + 1}.yaml\n")
    with pytest.raises(ConfigError, match="`extends` chains 100 files"):
        load_config(tmp_path / "c0.yaml", Settings)


@pytest.mark.parametrize("name", ["x" * 300 + ".yaml", "a\0b.yaml"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(name, Settings)
    assert "no configuration file" in refusal(tmp_path, f"extends: {json.dumps(name)}\n").message


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HF_TOKEN}",
        "${oc.env:HF_TOKEN,nothing}",
        "${oc.env:NO_SUCH_VARIABLE,nothing}",
        "${oc.env: HF_TOKEN }",
        "a ${oc.env:HF_TOKEN} b",
        "${oc.decode:${oc.env:HF_TOKEN}}",
        "${oc.env:HF_${label}}",
        "${oc.env:USER,${oc.env:HF_TOKEN}}",
        "${oc.${label}:HF_TOKEN}",
        "${oc.create:{a: 1}}",
        "${oc.deprecated:label}",
        "${oc.select:label}",
        "${oc.dict.keys:optimizer}",
        "${mine:1}",
    ],
)
def test_no_secret_of_the_environment_comes_into_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for label in ("TOKEN", "env"):
        file = f"name: {json.dumps(text)}\nlabel: {label}\n"
        for content, override in ((file, []), (f"label: {label}\n", [f"name={text}"])):
            error = refusal(tmp_path, content, *override)
            assert "name" in error.message and "hf_secret" not in error.message + error.hint


def test_what_a_variable_holds_is_not_interpolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "${oc.decode:1}")
    assert load(tmp_path, "name: ${oc.env:USER}\n").name == "${oc.decode:1}"


def test_harmless_variables_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.delenv("SCRATCH", raising=False)
    text = """
name: job_${oc.env:SLURM_ARRAY_TASK_ID}
label: ${oc.env:SCRATCH,/tmp}
steps: ${oc.env:SLURM_ARRAY_TASK_ID}
"""
    config = load(tmp_path, text)
    assert (config.name, config.label, config.steps) == ("job_7", "/tmp", 7)
    assert "no variable SCRATCH" in refusal(tmp_path, "name: ${oc.env:SCRATCH}\n").message


def test_interpolations_by_relative_and_nested_keys(tmp_path: Path) -> None:
    text = """
name: steps
steps: 3
label: "${${name}} of ${.name}"
optimizer: {lr: '${.min_lr}', min_lr: '${..steps}', betas: ['${optimizer.betas[1]}', 0.9]}
"""
    config = load(tmp_path, text)
    assert config.label == "3 of steps"
    assert config.optimizer == Optimizer(lr=3, min_lr=3, betas=(0.9, 0.9))


def test_an_interpolated_section_can_be_looked_into(tmp_path: Path) -> None:
    class Two(Config):
        a: Optimizer
        b: Optimizer
        lr: float

    path = write(tmp_path, "two.yaml", "a: {lr: 0.5}\nb: ${a}\nlr: ${b.lr}\n")
    assert load_config(path, Two) == Two(a=Optimizer(lr=0.5), b=Optimizer(lr=0.5), lr=0.5)


def test_an_element_of_a_list_can_be_overridden(tmp_path: Path) -> None:
    text = "optimizer: {betas: [0.1, 0.2]}\n"
    assert load(tmp_path, text, "optimizer.betas.1=0.5").optimizer.betas == (0.1, 0.5)
    assert "optimizer.betas.2=1" in refusal(tmp_path, text, "optimizer.betas.2=1").message


@pytest.mark.parametrize("seed", [2**63, 2**64, -1])
def test_a_seed_that_no_generator_takes_is_one_line(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path, "a.yaml", "")
    with pytest.raises(ConfigError, match=rf"argument 'seed={seed}': seed: expected "):
        load_config(path, ExperimentConfig, [f"seed={seed}"])


@pytest.mark.parametrize(
    "mark", ["\x85", "\u2028", "\u2029", "\r", "\n", "\t", "\ufeff", "\x00", "\x7f"]
)
def test_unusual_breaks_in_a_text_survive_a_dump(tmp_path: Path, mark: str) -> None:
    config = Settings(name=mark, prompts=(f"a{mark}b", f"{mark}{mark} c", f"a {mark}"))
    assert load(tmp_path, dump_config(config)) == config
