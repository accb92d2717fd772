"""Packages that may be missing."""

import pytest

from jaxbn import optional


def test_what_to_install():
    with pytest.raises(
        ModuleNotFoundError, match=r"A plot needs nosuch,.*`pip ins"
    ) as e:
        optional.imported("nosuch.figure", "A plot")
    assert e.value.name == "nosuch"


def test_a_package_that_lacks_something_itself(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModuleNotFoundError, match=r"^No module named 'not_there_at_all"
    ):
        optional.imported("broken_package", "A test")
