"""Parameter files of every kind: each is used as it is meant, or refused in one line with status 2."""

import math

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2s.app import cli
from w2s.params import ParameterError, StudyParams

ODD = ["0100", "1_000", "yes", "off", "1:30", "2026-01-01", ".inf", "-.inf", ".nan", "~", "0x1F", "1e3", "+5", "''"]
ODD += ["!!python/name:os.system", "&a [*a]", "{<<: {alpha: 1}}", "[1, [2, [3]]]", "none", "null", "True", "- x", "|"]
scalars = st.none() | st.booleans() | st.integers() | st.integers(0, 50) | st.floats() | st.text(max_size=20)
scalars |= st.sampled_from(
    ["none", "explicit", "dpo", "simpo", "pocket-27", "cpu", "gold", "all-linear", "con", "a\0b"]
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3))
keys = st.sampled_from(sorted(StudyParams.model_fields)) | st.text(max_size=12)
lines = st.tuples(keys, st.sampled_from(ODD) | values.map(lambda v: yaml.safe_dump(v, default_flow_style=True).strip()))
contents = st.lists(lines, max_size=6).map(lambda ls: "\n".join(f"{k}: {v}" for k, v in ls).encode("utf-8", "replace"))
contents |= st.binary(max_size=60) | st.dictionaries(keys, values, max_size=4).map(lambda d: yaml.safe_dump(d).encode())


def used_or_refused(content: bytes, folder, capsys) -> None:
    file = folder / "p.yaml"
    file.write_bytes(content)
    try:
        params = StudyParams.load(file)
    except ParameterError as error:
        assert "\n" not in str(error) and str(file) in str(error), content
        assert cli.main(["fetch", str(file)]) == 2, content
        assert capsys.readouterr().err.strip().count("\n") == 0
        return
    meant = yaml.load(content, yaml.BaseLoader) or {}  # every scalar as the text that it is
    for key, value in params.model_dump(mode="json", exclude_unset=True).items():
        same_as_meant(value, meant[key], content)
    assert StudyParams.check(params.model_dump(exclude_unset=True)) == params


def same_as_meant(value, text, content) -> None:
    if isinstance(value, list):
        assert len(value) == len(text), content
        for one, other in zip(value, text, strict=True):
            same_as_meant(one, other, content)
    elif isinstance(value, dict):
        for key in text:
            same_as_meant(value[key], text[key], content)
    elif isinstance(value, bool) or value is None:
        assert text.lower() in ({True: ["true"], False: ["false"], None: ["null", "~", ""]}[value]), content
    elif isinstance(value, int | float):
        assert math.isfinite(value) and value == float(text) and "_" not in text, content
        assert not (isinstance(value, int) and text.lstrip("+-").startswith("0") and len(text.lstrip("+-")) > 1), (
            content
        )
    else:
        assert value == text, content


FEW = {"suppress_health_check": list(HealthCheck), "deadline": None, "derandomize": True, "database": None}


@settings(max_examples=150, **FEW)
@given(content=contents)
def test_parameter_files(content, tmp_path_factory, capsys):
    used_or_refused(content, tmp_path_factory.getbasetemp(), capsys)


@pytest.mark.slow
@settings(max_examples=1500, **FEW)
@given(content=contents)
def test_many_parameter_files(content, tmp_path_factory, capsys):
    used_or_refused(content, tmp_path_factory.getbasetemp(), capsys)
