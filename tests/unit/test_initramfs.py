"""The archive that a guest boots from."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from stackmap_testbed.lab.cpio import CpioWriter
from stackmap_testbed.lab.errors import MissingToolError
from stackmap_testbed.lab.initramfs import GuestIdentity, build_initramfs
from stackmap_testbed.lab.kernels import Kernel, ModuleSet, find_kernel

IDENTITY = GuestIdentity("server", "10.77.0.1/24", "fd77::1/64", "127.0.0.1 localhost\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel with one built-in, one plain and one compressed module, and their dependencies."""
    modules = tmp_path / "lib" / "6.12.9-cloud-amd64"
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/failover.ko").write_bytes(b"\x7fELF failover")
    (modules / "kernel/virtio_net.ko.xz").write_bytes(lzma.compress(b"\x7fELF virtio_net"))
    (modules / "modules.dep").write_text(
        "kernel/failover.ko:\nkernel/virtio_net.ko.xz: kernel/failover.ko\n"
    )
    (modules / "modules.builtin").write_text(
        "kernel/fs/virtiofs.ko\nkernel/virtio_pci.ko\nkernel/virtio-console.ko\n"
    )
    return Kernel("6.12.9-cloud-amd64", tmp_path / "vmlinuz", modules)


def unpack(archive: bytes, directory: Path) -> None:
    directory.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories", "--nonmatching", "dev/*"],
        input=archive,
        cwd=directory,
        check=True,
    )


def test_cpio_reads_what_the_writer_wrote(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    cpio = CpioWriter()
    cpio.file("/a/b/odd", b"12345", 0o755)
    cpio.file("/a/empty", b"")
    cpio.symlink("/a/link", "b/odd")
    unpack(cpio.finish(), tmp_path / "out")
    assert (tmp_path / "out/a/b/odd").read_bytes() == b"12345"
    assert (tmp_path / "out/a/b/odd").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out/a/link").read_bytes() == b"12345"
    assert (tmp_path / "out/a/empty").read_bytes() == b""


def test_modules_come_uncompressed_and_in_order(kernel: Kernel, tmp_path: Path) -> None:
    if shutil.which("busybox") is None or shutil.which("cpio") is None:
        pytest.skip("busybox or cpio is not installed")
    archive = build_initramfs(kernel, IDENTITY, ["/usr/bin/python3", "agent.py"], [])
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/modules/virtio_net.ko").read_bytes() == b"\x7fELF virtio_net"
    init = (tmp_path / "out/init").read_text()
    assert init.index("insmod /modules/failover.ko") < init.index("insmod /modules/virtio_net.ko")
    assert "virtiofs.ko" not in init
    assert "switch_root /host /usr/bin/python3 agent.py" in init
    subprocess.run(["busybox", "sh", "-n", tmp_path / "out/init"], check=True)


def test_a_project_below_tmp_stays_visible(kernel: Kernel) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not installed")
    keep = [Path("/tmp/a project"), Path("/usr"), Path("/tmp")]
    archive = build_initramfs(kernel, IDENTITY, ["agent"], keep).decode(errors="replace")
    assert "mount --bind '/host/tmp/a project' /keep/0" in archive
    assert "mount --move /keep/0 '/host/tmp/a project'" in archive
    assert "/keep/1" not in archive


def test_a_module_the_kernel_lacks_is_a_sentence(kernel: Kernel) -> None:
    with pytest.raises(MissingToolError, match="has no module e1000"):
        ModuleSet(kernel).load_order(["e1000"])


def test_the_newest_kernel_of_a_series_is_found(tmp_path: Path) -> None:
    boot, lib = tmp_path / "boot", tmp_path / "lib"
    boot.mkdir()
    releases = ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.117+deb12-cloud-amd64"]
    for release in [*releases, "6.1.0-99-cloud-amd64"]:
        (boot / f"vmlinuz-{release}").touch()
    for release in releases:
        (lib / release).mkdir(parents=True)
        (lib / release / "modules.dep").touch()
    assert find_kernel("6.1", boot=boot, lib=lib).release == "6.1.0-56-cloud-amd64"
    assert find_kernel("6.12", boot=boot, lib=lib).release == releases[2]
    exact = find_kernel("6.1.0-9-cloud-amd64", boot=boot, lib=lib)
    assert exact.image == boot / "vmlinuz-6.1.0-9-cloud-amd64"


def test_a_missing_kernel_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match=r"linux-image-6\.12-cloud-amd64"):
        find_kernel("6.12", boot=tmp_path, lib=tmp_path)


def test_a_directory_is_a_kernel_of_its_own(tmp_path: Path) -> None:
    modules = tmp_path / "lib/modules/6.12.9-own"
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    (tmp_path / "image").touch()
    assert find_kernel(str(tmp_path)) == Kernel("6.12.9-own", tmp_path / "image", modules)


def test_a_directory_without_a_kernel_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match="make debug-kernel"):
        find_kernel(str(tmp_path))
