"""YAML with lines: what its words mean. What is wrong with a file is tested where files are loaded."""

from lmim.plan.located_yaml import parse_yaml


def test_yaml_is_read_by_version_1_2() -> None:
    """Else `no` would be False and 1e-3 a word."""
    node = parse_yaml("{a: no, b: 1e-3, c: 0o10, d: '1', e: ~, f: 2024-01-01, 1: on}", "x")
    assert node.plain() == {"a": "no", "b": 1e-3, "c": 8, "d": "1", "e": None, "f": "2024-01-01", "1": "on"}
