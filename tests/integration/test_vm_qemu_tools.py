"""The programs and firmware that the VM engine needs: found, too old, missing; and whether KVM works."""

import os
from pathlib import Path

import pytest

from host_agent.errors import QemuError, ToolUnavailable
from host_agent.vm.qemu.accelerator import choose_accelerator, probe
from host_agent.vm.qemu.argv import Accelerator
from host_agent.vm.qemu.tools import Firmware, check_versions, environment, run_qemu_img


def _program(directory: Path, name: str, output: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)


def test_installed_tools_are_accepted() -> None:
    """QEMU, qemu-img and the firmware of this machine are new enough."""
    check_versions()


@pytest.mark.parametrize(
    ("qemu", "image_tool", "message"),
    [
        ("QEMU emulator version 6.2.0", "qemu-img version 7.2.0", r"qemu-system-x86_64 6\.2 is too old: install 7\.0"),
        ("QEMU emulator version 7.2.0", "qemu-img version 5.2.0", r"qemu-img 5\.2 is too old.*qemu-utils"),
        ("something else", "qemu-img version 7.2.0", "gave no version"),
        (None, "qemu-img version 7.2.0", "qemu-system-x86_64 is not installed.*apt-get install qemu-system-x86"),
        ("QEMU emulator version 7.2.0", None, "qemu-img is not installed.*apt-get install qemu-utils"),
    ],
)
def test_unfit_tool_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu: str | None, image_tool: str | None, message: str
) -> None:
    """A program that is missing or too old is named, with the package to install."""
    for name, output in (("qemu-system-x86_64", qemu), ("qemu-img", image_tool)):
        if output is not None:
            _program(tmp_path, name, output)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolUnavailable, match=message):
        check_versions()


@pytest.mark.parametrize("missing", ["code", "variables"])
def test_missing_firmware_is_named(tmp_path: Path, missing: str) -> None:
    """Without UEFI firmware the message says which package has it."""
    firmware = Firmware(**{missing: tmp_path / "no.fd"})
    with pytest.raises(ToolUnavailable, match=r"no\.fd: install the package ovmf"):
        check_versions(firmware)


def test_children_get_nothing_of_the_agents_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the agent's environment holds does not get into QEMU's."""
    monkeypatch.setenv("AGENT_SECRET", "x")
    assert set(environment()) == {"PATH", "LC_ALL"}


def test_failure_of_qemu_img_is_told_in_its_words(tmp_path: Path) -> None:
    """What qemu-img says is in the error, in one line."""
    with pytest.raises(QemuError, match=r"Could not open .*No such file") as failure:
        run_qemu_img(["info", str(tmp_path / "none")])
    assert "\n" not in str(failure.value)


def test_guest_runs_under_the_accelerator_that_was_chosen() -> None:
    """The choice is one under which a guest was seen to run; TCG always is."""
    assert probe(Accelerator.TCG, "max", timeout_seconds=30)
    chosen = choose_accelerator()
    assert chosen is Accelerator.TCG or os.access("/dev/kvm", os.W_OK)


def test_probe_of_what_qemu_cannot_do_fails() -> None:
    """A QEMU that does not start the guest counts as no accelerator."""
    assert not probe(Accelerator.TCG, "no-such-cpu")
