# Shared by the setup_*.sh scripts: make_env FOLDER PACKAGE...  A virtual environment of its own, because the flows' pins clash.
make_env() {
    env_folder=$1
    shift
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || {
        echo "error: $python is $("$python" -V 2>&1), and these packages need 3.10 to 3.12; set PYTHON to one of those" >&2
        exit 1
    }
    "$python" -m venv "$env_folder"
    "$env_folder/bin/pip" install --quiet --disable-pip-version-check "$@"
    echo "ready: $env_folder/bin/python"
}
need() { # need COMMAND HOW
    command -v "$1" >/dev/null || echo "note: $1 is not on this machine: $2" >&2
}
