"""Say in one line why MLX cannot be installed for this Python, or nothing; the Makefile runs it before pip.

Left to itself, pip only says "No matching distribution found". A Python that is too old for the package can
run this file: its syntax is that of Python 3.6, and it imports nothing but the standard library.
"""

import os
import platform
import subprocess
import sys

# What MLX 0.32 has wheels for. The oldest Python is also in pyproject.toml.
OLDEST, NEWEST = (3, 10), (3, 15)
MACOS = (14, 0)
GLIBC = (2, 35)
LINUX_MACHINES = ("x86_64", "aarch64")


class Facts:
    """What is known of a Python and of the system that it runs on.

    Attributes:
        python: its version, (major, minor) or longer.
        implementation: CPython, PyPy and so on.
        system: Darwin, Linux and so on.
        machine: what it was built for: arm64, x86_64 and so on.
        release: version of macOS, or of glibc on Linux; empty where there is none, or where it is not known.
        apple_silicon: whether the Mac has it; x86_64 programs run under Rosetta there.
    """

    def __init__(self, python, implementation, system, machine, release, apple_silicon=False):
        self.python = tuple(python)
        self.implementation = implementation
        self.system = system
        self.machine = machine
        self.release = tuple(release)
        self.apple_silicon = apple_silicon


def why_not(facts):
    """Why MLX cannot be installed, in one line; empty where it can be."""
    python = "Python " + _dotted(facts.python[:2])
    choose = "choose another one: make PYTHON=python3.13 ..."
    if facts.python < OLDEST:
        return "mlxlava needs Python %s or newer and this is %s; %s" % (_dotted(OLDEST), python, choose)
    if facts.implementation != "CPython":
        return "MLX has packages for CPython alone and this is %s; %s" % (facts.implementation, choose)
    if facts.python[:2] > NEWEST:
        return "MLX has no packages for %s yet, the newest are for %s; %s" % (python, _dotted(NEWEST), choose)
    if facts.system == "Darwin":
        return _why_not_on_a_mac(facts)
    if facts.system == "Linux":
        return _why_not_on_linux(facts)
    return "MLX has packages for macOS and Linux and this is %s" % facts.system


def _why_not_on_a_mac(facts):
    if facts.machine != "arm64" and facts.apple_silicon:
        return (
            "this Python runs as an Intel program, under Rosetta, and MLX cannot; open the terminal without "
            "Rosetta, or choose a Python for Apple silicon: make PYTHON=/opt/homebrew/bin/python3 ..."
        )
    if facts.machine != "arm64":
        return "MLX needs a Mac with Apple silicon (M1 or newer) and this one has an Intel processor"
    if facts.release and facts.release < MACOS:
        return "MLX needs macOS %d or newer and this is macOS %s; update macOS" % (
            MACOS[0],
            _dotted(facts.release),
        )
    return ""


def _why_not_on_linux(facts):
    if facts.machine not in LINUX_MACHINES:
        return "MLX has packages for %s on Linux and this is %s" % (
            " and ".join(LINUX_MACHINES),
            facts.machine,
        )
    if facts.release < GLIBC:
        return "MLX needs glibc %s or newer (Debian 12, Ubuntu 22.04) and this system has %s" % (
            _dotted(GLIBC),
            _dotted(facts.release) or "none",
        )
    return ""


def find_facts():
    """The facts of this Python."""
    system, machine = platform.system(), platform.machine()
    release, apple_silicon = "", machine == "arm64"
    if system == "Darwin":
        # platform.mac_ver() says 10.16 in Pythons that were built for old systems.
        release = _said("sw_vers", "-productVersion") or platform.mac_ver()[0]
        # Of this process, and of the Mac.
        for name in ("sysctl.proc_translated", "hw.optional.arm64"):
            apple_silicon = apple_silicon or _said("sysctl", "-n", name) == "1"
    elif system == "Linux":
        name, version = platform.libc_ver()
        release = version if name == "glibc" else ""
    version = [int(part) for part in release.split(".") if part.isdigit()]
    return Facts(
        sys.version_info[:3], platform.python_implementation(), system, machine, version, apple_silicon
    )


def _said(*command):
    """What a program of macOS prints; nothing where it fails."""
    folders = os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/usr/sbin"))
    environment = dict(os.environ, PATH=folders, SYSTEM_VERSION_COMPAT="0")
    try:
        said = subprocess.check_output(command, stderr=subprocess.DEVNULL, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.decode().strip()


def _dotted(version):
    return ".".join(str(part) for part in version)


if __name__ == "__main__":
    sys.exit(why_not(find_facts()) or 0)
