"""A Python environment with this checkout installed in it. Standard library only; an old Python 3 can read it, so that it gets a sentence."""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OWN = os.path.join(ROOT, ".venv")
OLDEST = (3, 10)
INTERRUPTED = 130  # what shells give a program that Ctrl-C ends


def say(text: str) -> None:
    """One line about what is being done, on stderr."""
    print("[onnxprune] " + text, file=sys.stderr, flush=True)


def run(command: list) -> None:
    """Run and show a command; stop with its status where it fails. Ctrl-C is the command's, which says how to go on."""
    say("$ " + " ".join(command))
    process, status = subprocess.Popen(command), None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue
    if status == INTERRUPTED:
        sys.exit(status)
    if status:
        sys.exit(f"[onnxprune] failed with status {status}: {' '.join(command)}")


def attempt(command: list) -> bool:
    """Run and show a command that may fail, without its chatter; whether it succeeded."""
    say("$ " + " ".join(command))
    return subprocess.call(command, stdout=subprocess.DEVNULL) == 0


def python() -> str:
    """The interpreter of the environment: the active one, else .venv in this checkout, made where it is missing."""
    if sys.version_info < OLDEST:
        needed, found = (".".join(map(str, version[:2])) for version in (OLDEST, sys.version_info))
        sys.exit(f"[onnxprune] Python {needed} or newer is needed, {sys.executable} is {found}")
    if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX"):
        say("using the active environment " + sys.prefix)
        return sys.executable
    inside = os.path.join(OWN, "Scripts" if os.name == "nt" else "bin", "python")
    if not os.path.exists(inside) or subprocess.call(
        [inside, "-c", "import pip"], stderr=subprocess.DEVNULL
    ):
        say("making a virtual environment in " + OWN)
        make = [sys.executable, "-m", "venv", "--clear", OWN]
        if not attempt(make) and not (_apt("python3-venv") and attempt(make)):
            sys.exit(
                "[onnxprune] this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
            )
    return inside


def install(interpreter: str, extras: list, packages: tuple = (), wanted: tuple = ()) -> None:
    """Install this checkout with extras and packages, unless an earlier call did and setup.cfg and this file are the same.

    packages must install. wanted: requirements, each with its own options of pip behind spaces; one that does not install is named and left out.
    """
    state = hashlib.sha256(
        (ROOT + _text(os.path.join(ROOT, "setup.cfg")) + _text(os.path.abspath(__file__))).encode()
    ).hexdigest()
    prefix = subprocess.check_output(
        [interpreter, "-c", "import sys; print(sys.prefix)"], universal_newlines=True
    ).strip()
    stamp = os.path.join(prefix, ".onnxprune")
    asked = {*extras, *packages, *wanted}
    known, *there = _text(stamp).splitlines() or [""]
    if (
        known == state
        and asked <= set(there)
        and subprocess.call([interpreter, "-c", "import onnxprune"]) == 0
    ):
        return
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # by its path: else a folder named onnxprune where a command is run, such as this checkout below it, would be taken for the package
    known_to = subprocess.check_output([*pip, "--help"], universal_newlines=True)
    mode = ["--config-settings", "editable_mode=compat"] if "--config-settings" in known_to else []
    run([*pip, *packages, *mode, "--editable", f"{ROOT}[{','.join(extras)}]"])
    plain = [package for package in wanted if " " not in package]
    together = not plain or attempt(pip + plain)
    for package in wanted:
        if not (together and package in plain) and not attempt(pip + package.split()):
            say(f"not installed: {package.split()[0]}; what needs it is left out")
    with open(stamp, "w", encoding="utf-8") as file:
        file.write("\n".join([state, *sorted(asked)]))


def program(name: str, package: str) -> bool:
    """Whether `name` is on PATH, after an attempt to install its Debian package where that is allowed."""
    return bool(shutil.which(name) or _apt(package) and shutil.which(name))


def _text(path: str) -> str:
    """What a file holds; nothing where there is none."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def _apt(package: str) -> bool:
    """Install a Debian package if this is root on a machine with apt; whether that succeeded."""
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    attempt(["apt-get", "update", "-qq"])
    return attempt(["apt-get", "install", "-qq", "-y", "--no-install-recommends", package])
