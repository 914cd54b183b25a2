"""A Python environment with this checkout installed.

Standard library only, in a syntax that old versions of Python 3 parse, so that they can say what is
needed.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OWN = os.path.join(ROOT, ".venv")
OLDEST = (3, 10)
INTERRUPTED = 130  # what shells give a program that Ctrl-C ends


def say(text: str) -> None:
    """Print a line about the current step on stderr."""
    print("[onnxprune] " + text, file=sys.stderr, flush=True)


def run(command: list) -> None:
    """Print and run a command; exit with its status if it fails.

    Ctrl-C is left to the command, which says how to resume.
    """
    say("$ " + " ".join(command))
    before = signal.getsignal(signal.SIGINT)
    # set before the start: the command may be interrupted as soon as it runs. It does not inherit a
    # function, but that SIGINT is ignored, as it is in the background.
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.call(command)
    finally:
        signal.signal(signal.SIGINT, before)
    if status == INTERRUPTED:
        sys.exit(status)
    if status:
        sys.exit(f"[onnxprune] failed with status {status}: {' '.join(command)}")


def attempt(command: list) -> bool:
    """Print and run a command that may fail, without its output; return whether it succeeded."""
    say("$ " + " ".join(command))
    return subprocess.call(command, stdout=subprocess.DEVNULL) == 0


def python() -> str:
    """Return the interpreter of the active environment, else that of .venv in this checkout.

    Create .venv if it is missing.
    """
    if sys.version_info < OLDEST:
        needed, present = (".".join(map(str, v[:2])) for v in (OLDEST, sys.version_info))
        sys.exit(f"[onnxprune] Python {needed} or newer is needed; {sys.executable} is {present}")
    if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX"):
        say("using the active environment " + sys.prefix)
        return sys.executable
    inside = os.path.join(OWN, "Scripts" if os.name == "nt" else "bin", "python")
    if not os.path.exists(inside) or subprocess.call(
        [inside, "-c", "import pip"], stderr=subprocess.DEVNULL
    ):
        say("creating a virtual environment in " + OWN)
        make = [sys.executable, "-m", "venv", "--clear", OWN]
        if not attempt(make) and not (_apt("python3-venv") and attempt(make)):
            sys.exit(
                "[onnxprune] this Python cannot create virtual environments; "
                "on Debian and Ubuntu: apt install python3-venv"
            )
    return inside


def install(
    interpreter: str, extras: list, packages: tuple = (), wanted: tuple = (), options: tuple = ()
) -> None:
    """Install this checkout with extras and packages, unless an earlier call has done so.

    Parameters
    ----------
    interpreter
        Python of the environment.
    extras
        Extras of setup.cfg.
    packages
        Requirements that must install.
    wanted
        Optional requirements, each followed by its options of pip; failures are printed.
    options
        Options of all calls of pip.
    """
    # a change of the metadata or of this file installs again
    sources = "".join(_text(os.path.join(ROOT, name)) for name in ("setup.cfg", "pyproject.toml"))
    sources += _text(os.path.abspath(__file__))
    state = hashlib.sha256((ROOT + sources).encode()).hexdigest()
    prefix = subprocess.check_output(
        [interpreter, "-c", "import sys; print(sys.prefix)"], universal_newlines=True
    ).strip()
    stamp = os.path.join(prefix, ".onnxprune")
    requested = {*extras, *packages, *wanted}
    known, *installed = _text(stamp).splitlines() or [""]
    if (
        known == state
        and requested <= set(installed)
        and subprocess.call([interpreter, "-c", "import onnxprune"]) == 0
    ):
        return
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    # compat puts the path of the checkout first: otherwise a folder named onnxprune in the working
    # directory, such as a checkout, would be imported as the package
    pip_help = subprocess.check_output([*pip, "--help"], universal_newlines=True)
    mode = ["--config-settings", "editable_mode=compat"] if "--config-settings" in pip_help else []
    extra = f"[{','.join(extras)}]" if extras else ""
    run([*pip, *packages, *mode, "--editable", ROOT + extra])
    plain = [package for package in wanted if " " not in package]
    together = not plain or attempt(pip + plain)
    for package in wanted:
        if not (together and package in plain) and not attempt(pip + package.split()):
            say(f"not installed: {package.split()[0]}; tests that need it are skipped")
    with open(stamp, "w", encoding="utf-8") as file:
        file.write("\n".join([state, *sorted(requested)]))


def program(name: str, package: str) -> bool:
    """Return whether `name` is on PATH, if necessary after installing its Debian package."""
    return bool(shutil.which(name) or _apt(package) and shutil.which(name))


def _text(path: str) -> str:
    """Return the text of a file, "" if there is none."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def _apt(package: str) -> bool:
    """Install a Debian package if this is root on a machine with apt; return whether it did."""
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    attempt(["apt-get", "update", "-qq"])
    return attempt(["apt-get", "install", "-qq", "-y", "--no-install-recommends", package])
