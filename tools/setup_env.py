"""Make or repair the project's virtual environment from a lock file.

Every `make` target calls this first. When the environment is up to date, it returns at once.

The work is done in four steps: an empty environment, the uv that the lock pins (the only thing
that comes through pip), everything else in the lock (which says what may be built; nothing needs a
compiler), and the project itself in editable mode. A stamp in the environment says what it was made
from. It is written last, so an environment without a finished stamp was interrupted and is made
anew.

Standard library only. This file has to parse on Python 3.6, to tell its user what is wrong there.

Exit status: 0 ready; 1 an installer failed; 2 this machine or its Python won't do; 130 interrupted.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 12))  # oldest and newest version that the locks were made for
# The CUDA libraries that torch brings on Linux are most of it.
INSTALLED_GB = 6.0 if sys.platform.startswith("linux") else 2.0
STEPS = 4

# Settings in the caller's environment may say how to reach a package index. Those that say what to
# install, or where to, are left out: the lock and this script decide that. UV_FIND_LINKS is one of
# them, because a folder of wheels may hold a CPU build of torch, which passes for the pinned
# version and does not work with the pinned torchvision.
# fmt: off
LEFT_OUT = (
    'BREAK_SYSTEM_PACKAGES', 'CONSTRAINT', 'DRY_RUN', 'EDITABLE', 'EXCLUDE_NEWER', 'NO_BINARY',
    'NO_DEPS', 'ONLY_BINARY', 'OVERRIDE', 'PLATFORM', 'PREFIX', 'PYTHON', 'PYTHON_PLATFORM',
    'PYTHON_VERSION', 'REQUIREMENT', 'REQUIRE_HASHES', 'ROOT', 'SYSTEM_PYTHON', 'TARGET',
    'TORCH_BACKEND', 'USER',
)
# fmt: on

# What an installer says when it fails, and what to tell the user.
HINTS = (
    ("no space left", "no space left on the disk; free some and try again"),
    ("disk quota exceeded", "the disk quota is used up; free some and try again"),
    ("ensurepip", "this Python has no ensurepip; install its venv package (python3-venv)"),
    (
        "no matching distribution|failed to fetch|error sending request|dns error|timed out|"
        "not found in the package registry|connection",
        "the package index did not give what was asked for; check the network and try again "
        "(behind a mirror set UV_DEFAULT_INDEX: uv does not read pip's settings)",
    ),
    (
        "no usable wheels|no wheels|only-binary|current platform",
        "a package has no wheel for this machine",
    ),
)


class SetupError(Exception):
    """A reason to give up, worth one line, and the exit status that goes with it."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=str(ROOT / ".venv"), help="folder of the environment")
    parser.add_argument("--lock", default=str(ROOT / "requirements" / "lock.txt"), help="lock file")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="make it anew if its Python is not the one that runs this script",
    )
    parser.add_argument(
        "--min-free-gb",
        type=float,
        default=INSTALLED_GB,
        help="free disk space a new environment asks for (default: %(default)s)",
    )
    args = parser.parse_args()
    venv, lock = Path(os.path.abspath(args.venv)), Path(os.path.abspath(args.lock))
    try:
        if not plan(venv, lock, args.exact).done:
            with only_one(venv.parent):
                build(venv, lock, args.exact, args.min_free_gb)
    except SetupError as error:
        print("setup_env: {}".format(error), file=sys.stderr)
        return error.status
    except OSError as error:  # a full or read-only disk, a folder that may not be written to
        print("setup_env: {}".format(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup_env: interrupted; the next run starts over", file=sys.stderr)
        return 130
    return 0


class Plan:
    """What the stamp says: nothing to do (`done`), bring up to date (`keep`), or make anew."""

    def __init__(self, wanted, done, keep):
        self.wanted, self.done, self.keep = wanted, done, keep


def plan(venv, lock, exact):
    """Compare the stamp in the environment with what it should say."""
    found = read_stamp(venv)
    wanted = {
        "root": str(ROOT),  # a moved project holds an environment that points to its old place
        "venv": str(venv),
        "python": "{}.{}.{}".format(*sys.version_info),
        "inputs": hash_of(lock, ROOT / "setup.py", ROOT / "hire_mlp_mm" / "__init__.py"),
    }
    if found.get("python") and not exact:  # no particular Python was asked for
        wanted["python"] = found["python"]
    # The second condition fails when the Python below the environment was removed.
    keep = all(found.get(key) == wanted[key] for key in ("root", "venv", "python"))
    keep = keep and (venv / "bin" / "python").exists()
    return Plan(wanted, keep and found == wanted, keep)


def build(venv, lock, exact, min_free_gb):
    """Do the four steps, or three of them where the environment can be kept."""
    todo = plan(venv, lock, exact)
    if todo.done:  # another run did it while this one waited
        return
    if not todo.keep:
        check_python()
        check_ours(venv)
        check_disk(venv, min_free_gb)
    uv_version = re.search(r"^uv==(\S+)", lock.read_text(encoding="utf-8"), re.M).group(1)
    python, uv = str(venv / "bin" / "python"), str(venv / "bin" / "uv")
    tell = Teller()
    tell(1, "{} {}".format("keeping" if todo.keep else "making", venv))
    if not todo.keep:
        if venv.exists():
            shutil.rmtree(str(venv))
        venv.mkdir(parents=True)
    write_stamp(venv, {})  # unfinished from here on, and recognisably ours
    if not todo.keep:
        # The base Python, in case this script runs on the very environment that it just removed.
        base = getattr(sys, "_base_executable", None) or sys.executable
        tell.run([base, "-I", "-m", "venv", str(venv)])
    tell(2, "installing uv {}".format(uv_version))
    tell.run([python, "-I", "-m", "pip", "install", "--no-deps", "uv==" + uv_version])
    tell(3, "installing what {} pins".format(os.path.relpath(str(lock), str(ROOT))))
    tell.run([uv, "pip", "sync", "--python", python, str(lock)])
    tell(4, "installing the project itself")
    tell.run(
        [uv, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation"]
        + ["--editable", str(ROOT)]
    )
    write_stamp(venv, todo.wanted)
    tell(4, "ready: {}".format(venv))


def check_python():
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        here, oldest, newest = ("{}.{}".format(*v) for v in (sys.version_info,) + PYTHONS)
        raise SetupError(
            "{} is Python {}, and this needs {} to {}; name another one: "
            "make PYTHON=python3.11 ...".format(sys.executable, here, oldest, newest),
            2,
        )


def check_ours(venv):
    """Refuse to remove a folder that this script didn't make."""
    if (
        venv.exists()
        and not stamp_of(venv).exists()
        and (not venv.is_dir() or os.listdir(str(venv)))
    ):
        raise SetupError(
            "{} is there and was not made by this script; move it away, or name another "
            "folder: make VENV=.venv-hire ...".format(venv),
            2,
        )


def check_disk(venv, need_gb):
    """Look at the disk of the environment and at the one of uv's cache.

    Where they are the same, uv links files instead of copying them, so they count once.
    """
    cache = os.environ.get("UV_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "uv"
    )
    disks = {}
    for place in (venv, Path(cache).absolute()):
        while not place.exists():
            place = place.parent
        disks.setdefault(place.stat().st_dev, place)
    for place in disks.values():
        free_gb = shutil.disk_usage(str(place)).free / 1e9
        if free_gb < need_gb:
            raise SetupError(
                "{:.1f} GB are free on the disk of {}, and a new environment needs {:g} GB; free "
                "some, or move it (make VENV=folder ...) or its cache (UV_CACHE_DIR=folder), or "
                "try all the same (make MIN_FREE_GB=0 ...)".format(free_gb, place, need_gb),
                2,
            )


class Teller:
    """Says which step is running, and runs its command with the command's own output in view."""

    def __init__(self):
        self.start, self.step, self.title = time.time(), 0, ""

    def __call__(self, step, title):
        self.step, self.title = step, title
        seconds = time.time() - self.start
        print("[{}/{} {:5.1f} s] {}".format(step, STEPS, seconds, title), flush=True)

    def run(self, command):
        status, output = run_in_view(command, installer_environment())
        if status == 0:
            return
        how = "exit status {}" if status > 0 else "killed by signal {}"
        last_line = (output.strip().splitlines() or ["it said nothing"])[-1].strip()
        hints = (hint for pattern, hint in HINTS if re.search(pattern, output, re.I))
        raise SetupError(
            "step {} ({}) failed, {}: {}".format(
                self.step, self.title, how.format(abs(status)), next(hints, last_line)
            ),
            1,
        )


def installer_environment():
    env = dict(os.environ)
    for name in (*LEFT_OUT, "FIND_LINKS"):
        env.pop("UV_" + name, None)
    for name in LEFT_OUT:
        env.pop("PIP_" + name, None)
    # Where pip's own configuration file asks for it, --user cannot work in an environment.
    env.update(PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    return env


def run_in_view(command, env):
    """Run a command, show its output as it comes, return its exit status and its last output.

    On a terminal, the command gets a terminal of its own, or it would hide its progress bars.
    """
    if sys.stdout.isatty():
        reader, writer = pty.openpty()
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    else:
        reader, writer = os.pipe()
    process = subprocess.Popen(
        command, cwd=str(ROOT), env=env, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
    )
    os.close(writer)
    output = b""
    try:
        while True:
            try:
                chunk = os.read(reader, 65536)
            except OSError:  # how Linux says that a terminal's other end was closed
                break
            if not chunk:
                break
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            output = (output + chunk)[-65536:]
        return process.wait(), output.decode("utf-8", "replace")
    finally:
        os.close(reader)
        if process.poll() is None:  # we were interrupted: leave nobody writing behind us
            process.terminate()
            process.wait()


@contextlib.contextmanager
def only_one(folder):
    """Let one run at a time work below a folder; the system drops the lock when a run dies."""
    while not folder.exists():
        folder = folder.parent
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup_env: waiting for another run to finish", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some network disks cannot lock
            pass
        yield
    finally:
        os.close(handle)


def stamp_of(venv):
    return venv / "setup_env.json"


def read_stamp(venv):
    """What the environment was made from; empty where it is absent or unfinished."""
    try:
        return json.loads(stamp_of(venv).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(venv, stamp):
    stamp_of(venv).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def hash_of(*paths):
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes() + b"\0")
        except OSError as error:
            raise SetupError("cannot read {}: {}".format(path, error.strerror), 2)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
