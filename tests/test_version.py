"""The version stands in one place, and what is installed says the same."""

from __future__ import annotations

import configparser
from importlib import metadata
from pathlib import Path

import ostinato

ROOT = Path(__file__).resolve().parents[1]


def test_the_installed_package_has_the_version_of_the_code() -> None:
    """test_project.py holds a wheel to it as well."""
    assert metadata.version("ostinato") == ostinato.__version__


def test_setup_cfg_reads_the_version_from_the_code() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["metadata"]["version"] == "attr: ostinato.__version__"


def test_the_changelog_knows_the_version() -> None:
    """A release has its own heading, below [Unreleased]."""
    heads = [
        line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")
    ]
    assert heads[0] == "## [Unreleased]" and heads[1].startswith(f"## [{ostinato.__version__}]")
