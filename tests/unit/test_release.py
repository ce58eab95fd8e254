"""A release's version, the same everywhere, and its licences."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import stackmap
from stackmap_cli.main import main

ROOT = Path(__file__).resolve().parents[2]
#: The texts of what SPDX lines name.
TEXTS = {
    "GPL-2.0": "LICENSE",
    "Linux-syscall-note": "LICENSES/Linux-syscall-note",
    "MIT": "LICENSES/MIT",
}


def test_the_command_and_the_package_have_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", stackmap.__version__)
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"stackmap, version {stackmap.__version__}\n"
    program = "import importlib.metadata; print(importlib.metadata.version('stackmap'))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == stackmap.__version__


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("kmod/main.c", r'^MODULE_VERSION\("(.*)"\);$'),
        ("kmod/dkms.conf", r'^PACKAGE_VERSION="(.*)"$'),
        ("CHANGELOG.md", r"^## (\S+)"),
    ],
)
def test_others_repeat_it(file: str, pattern: str) -> None:
    found = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found[0] == stackmap.__version__


def test_the_licence_is_the_gpl() -> None:
    assert (ROOT / "LICENSE").read_text() == Path("/usr/share/common-licenses/GPL-2").read_text()


def test_each_file_of_the_module_names_licences_whose_texts_are_here() -> None:
    sources = [path for kind in ("*.c", "*.h", "*.yaml") for path in (ROOT / "kmod").rglob(kind)]
    for file in sources:
        if file.name.endswith(".mod.c"):
            continue
        found = re.search(r"SPDX-License-Identifier: (.*?)( \*/)?$", file.read_text(), re.MULTILINE)
        assert found, file
        names = re.sub(r"[()]|\b(WITH|OR)\b", " ", found[1]).split()
        assert all((ROOT / TEXTS[name]).is_file() for name in names)
        # Programs of any licence may be built with what says how to talk to the module.
        public = file.parent.name == "uapi" or file.suffix == ".yaml"
        assert ("Linux-syscall-note" in names) == public, file
