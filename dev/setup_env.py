"""Make, update or mend the project's virtual environment; every `make` target calls this first.

A stamp in the environment says what it was made from: while that holds, there is nothing to do.
The stamp is emptied first and written last, so that what was interrupted is made anew.

Standard library only, and without what Python 3.6 cannot parse: it is told that it is too old.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen

ROOT = Path(__file__).resolve().parent.parent
# The caller's environment may say how to reach an index. What to install and where to, the lock
# and this script decide: a folder of wheels in UV_FIND_LINKS may hold a CPU build of torch, which
# passes for the pinned version and does not work with the pinned torchvision.
LEFT_OUT = "(PIP|UV)_(?!.*(CACHE|CERT|CONFIG_FILE|HOST|INDEX|KEYRING|OFFLINE|PROXY|TIMEOUT|TLS))"
# What an installer says when it fails, and what to tell the user.
HINTS = {
    "no space left|quota exceeded": "the disk or the quota is full; free some and try again",
    "ensurepip": "this Python has no ensurepip; install its venv package (python3-venv)",
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
        set_up(Path(args.venv), args.lock, args.min_free_gb, args.exact)
    except OSError as error:  # a full or read-only disk, a folder that may not be written to
        sys.exit(f"setup_env: {error}")
    except KeyboardInterrupt:
        sys.exit("setup_env: interrupted; the next run starts over")


def set_up(venv, lock, min_free_gb, exact):
    """Do what the stamp leaves to do."""
    stamp, python, uv = venv / "setup_env.json", venv / "bin/python", venv / "bin/uv"
    found = json.loads(stamp.read_text() or "{}") if stamp.exists() else {}
    # A moved project holds an environment that points to its old place.
    made = {"root": str(ROOT), "venv": str(venv), "python": "{}.{}.{}".format(*sys.version_info)}
    if not exact:
        made["python"] = found.get("python", made["python"])
    inputs = (lock, ROOT / "setup.py", ROOT / "hire_mlp_mm/__init__.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() + b"\0" for path in inputs))
    wanted = {**made, "inputs": digest.hexdigest()}
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
        # Not by the environment's own Python, which was removed with it.
        run(f"making {venv}", sys._base_executable, "-I", "-m", "venv", venv)
    pinned = re.search("^uv==[^ ;\n]+", lock.read_text(), re.M).group()
    run(f"installing {pinned}", python, "-I", "-m", "pip", "install", "--no-deps", pinned)
    run(f"installing what {lock} pins", uv, "pip", "sync", "--python", python, lock)
    install = [uv, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation"]
    run("installing the project itself", *install, "--editable", ROOT)
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
    for place in (venv, Path(cache).absolute()):
        while not place.exists():
            place = place.parent
        free_gb = shutil.disk_usage(str(place)).free / 1e9
        if free_gb < min_free_gb:
            sys.exit(
                f"setup_env: {free_gb:.1f} GB are free on the disk of {place}, and a new "
                f"environment needs {min_free_gb:g}; name another disk: make VENV=folder "
                "UV_CACHE_DIR=folder ..., or try all the same: make MIN_FREE_GB=0 ..."
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
