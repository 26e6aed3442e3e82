"""Make, update or mend the project's virtual environment; every `make` target calls this first.

A stamp in the environment says what it was made from: while that holds, there is nothing to do.
It is emptied first and written last, so that what was interrupted is made anew. This file has to
parse on Python 3.6, which is told that it is too old.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen

ROOT = Path(__file__).resolve().parent.parent
# The caller's environment says how to reach an index, the lock what to install: a CPU build in
# UV_FIND_LINKS passes for the pinned torch and does not work with the pinned torchvision.
KEPT = "CACHE|CERT|CONFIG_FILE|FIND|HOST|INDEX|KEYRING|OFFLINE|PROXY|TIMEOUT|TLS"
LEFT_OUT = f"UV_FIND|(PIP|UV)_(?!.*({KEPT}))"
# What an installer says when it fails, and what to tell the user.
HINTS = {
    "no space left|quota exceeded": "the disk or the quota is full; free some and try again",
    "no matching|failed to fetch|sending request|dns error|timed out|registry|connection": "the "
    "package index did not give what was asked for; check the network and try again (behind a "
    "mirror set UV_DEFAULT_INDEX: uv does not read pip's settings)",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=os.path.abspath, required=True, help="folder to make")
    parser.add_argument("--lock", type=Path, required=True, help="what it shall hold")
    parser.add_argument("--min-free-gb", type=float, required=True, help="disk that this takes")
    parser.add_argument("--exact", action="store_true", help="it has to be of this very Python")
    args = parser.parse_args()
    try:
        with open(str(args.lock)) as lock:
            with suppress(OSError):  # some network disks cannot lock
                fcntl.flock(lock, fcntl.LOCK_EX)  # one run at a time; another waits here
            set_up(Path(args.venv), args.lock, args.min_free_gb, args.exact)
    except OSError as error:  # a full or read-only disk, a folder that may not be written to
        sys.exit(f"setup_env: {error}")


def set_up(venv, lock, min_free_gb, exact):
    """Do what the stamp leaves to do."""
    stamp, python, uv = venv / "setup_env.json", venv / "bin/python", venv / "bin/uv"
    try:
        found = json.loads(stamp.read_text())
    except (FileNotFoundError, ValueError):  # none, or half of one
        found = {}
    this = "{}.{}.{}".format(*sys.version_info)
    version = this if exact else found.get("python", this)
    made = {"root": str(ROOT), "venv": str(venv), "python": version}
    inputs = (lock, ROOT / "setup.py", ROOT / "hire_mlp_mm/__init__.py", Path(__file__))
    digest = hashlib.sha256(b"".join(map(Path.read_bytes, inputs))).hexdigest()
    wanted = {**made, "inputs": digest}
    usable = python.exists() and uv.exists() and made.items() <= found.items()
    if usable and found == wanted:
        return
    if not usable:
        check(venv, min_free_gb)
        if venv.exists():
            shutil.rmtree(str(venv))
        venv.mkdir(parents=True)
    stamp.write_text("{}")  # unfinished from here on, and recognisably ours
    if not usable:
        run(f"making {venv}", sys._base_executable, "-I", "-m", "venv", venv)
    pinned = re.search("^uv==[^ ;\n]+", lock.read_text(), re.M).group()
    run(f"installing {pinned}", python, "-I", "-m", "pip", "install", "--no-deps", pinned)
    run(f"installing what {lock} pins", uv, "pip", "sync", "--python", python, lock)
    install = [uv, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation"]
    # As a path. As a finder it would come after a folder of this name, such as a clone's, that lies
    # where Python is started.
    compat = ["--config-setting", "editable_mode=compat"]
    run("installing the project itself", *install, *compat, "--editable", ROOT)
    stamp.write_text(json.dumps(wanted, indent=2) + "\n")
    print(f"setup_env: ready: {venv}")


def check(venv, min_free_gb):
    """End with a line for people where a new environment cannot or must not be made."""
    if not (3, 10) <= sys.version_info < (3, 13):  # which the locks were made for
        here = "{} is Python {}.{}".format(sys.executable, *sys.version_info)
        sys.exit(f"setup_env: {here}, not 3.10 to 3.12; name another: make PYTHON=python3.11 ...")
    if venv.exists() and not (venv / "setup_env.json").exists() and any(venv.iterdir()):
        sys.exit(f"setup_env: {venv} was not made by `make env`; name another: make VENV=DIR ...")
    cache = os.environ.get("UV_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home()
    for folder in (venv, Path(cache).absolute()):
        while not folder.exists():
            folder = folder.parent
        free_gb = shutil.disk_usage(str(folder)).free / 1e9
        if free_gb < min_free_gb:
            sys.exit(
                f"setup_env: {free_gb:.1f} GB are free on the disk of {folder}, {min_free_gb:g} "
                "needed; name another: make VENV=DIR UV_CACHE_DIR=DIR, or make MIN_FREE_GB=0"
            )


def run(what, *command):
    """Run an installer with its output in view; end with a line for people if it fails."""
    print(f"setup_env: {what}", flush=True)
    env = {name: value for name, value in os.environ.items() if not re.match(LEFT_OUT, name)}
    env["PIP_USER"] = "0"  # pip's own configuration file may ask for it, in vain
    pipes = dict(stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, errors="replace")
    said = f"{command[0]} ended\n"
    with Popen([*map(str, command)], env=env, **pipes) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said += line
    if process.returncode:
        hints = (hint for pattern, hint in HINTS.items() if re.search(pattern, said, re.I))
        reason = next(hints, said.splitlines()[-1].strip())
        sys.exit(f"setup_env: {what} failed ({process.returncode}): {reason}")


if __name__ == "__main__":
    main()
