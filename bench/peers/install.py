"""`python -m bench.peers.install`: the peers' own packages, below bench/peers; what Debian must bring is named.

Each peer has packages of its own, pinned with hashes: nothing of them is in Rushgate's environment. Debian's packages
are not installed but named, as that changes the machine.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent
INSTALLED = FOLDER / ".installed"
FASTAPI, FASTIFY = FOLDER / "fastapi", FOLDER / "fastify"
PYTHON = INSTALLED / "fastapi" / "bin" / "python"
NODE_MODULES = FASTIFY / "node_modules"
NGINX_MODULES = Path("/usr/lib/nginx/modules")  # Debian's
LUA = Path("/usr/share/lua/5.1")


class Missing(Exception):
    """The comparison cannot be run; the message names what is not there, and how to get it."""


def missing_debian() -> list[str]:
    """Names of the Debian packages that are needed and not there."""
    found = {
        "wrk": shutil.which("wrk") is not None,
        "nginx-light": shutil.which("nginx") is not None,
        "libnginx-mod-http-lua": (NGINX_MODULES / "ngx_http_lua_module.so").exists(),
        "lua-nginx-redis": (LUA / "nginx" / "redis.lua").exists(),
        "lua-cjson": any(Path("/usr/lib").glob("*/lua/5.1/cjson.so")),
        "nodejs": shutil.which("node") is not None,
        "npm": shutil.which("npm") is not None,
    }
    return [name for name, there in found.items() if not there]


def missing() -> list[str]:
    """What is needed for the comparison and not there, in words; empty = it can be run."""
    names = missing_debian()
    words = [f"Debian packages (apt-get install {' '.join(names)})"] if names else []
    words += [f"the packages of {peer.name} (make bench-peers)" for peer in (FASTAPI, FASTIFY) if not _fresh(peer)]
    return words


def check() -> None:
    """All is there.

    Raises:
        Missing: something is not.
    """
    words = missing()
    if words:
        raise Missing("the comparison needs what is not here: " + "; ".join(words))


def versions() -> dict[str, str]:
    """Of the peers and the generator, as words."""
    lock = (FASTAPI / "requirements.lock").read_text("utf-8")
    python = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    node = json.loads((FASTIFY / "package-lock.json").read_text("utf-8"))["packages"]
    of_node = [f"{name} {node[f'node_modules/{name}']['version']}" for name in ("fastify", "ioredis")]
    of_python = [f"{name} {python[name]}" for name in ("fastapi", "pydantic", "redis", "hiredis", "uvicorn")]
    return {
        "fastapi": ", ".join(of_python),
        "fastify": ", ".join([*of_node, f"node {_said('node', '--version')}"]),
        "nginx": f"{_said('nginx', '-v')}, libnginx-mod-http-lua, lua-nginx-redis, lua-cjson of Debian",
        "wrk": _said("wrk", "-v").partition(" Copyright")[0],
    }


def _said(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.strip().splitlines()[0]


def install() -> None:
    """The packages of FastAPI and Fastify as their locks say; what is installed already stays.

    Raises:
        Missing: Debian's packages; nothing was installed then.
        subprocess.CalledProcessError: pip or npm failed, and has said why.
    """
    names = missing_debian()
    if names:
        raise Missing(f"needed from Debian: apt-get install {' '.join(names)}")
    INSTALLED.mkdir(exist_ok=True)
    if not _fresh(FASTAPI):
        print("installing FastAPI and redis-py in an environment of their own")
        venv.create(PYTHON.parent.parent, clear=True, with_pip=True)
        pip = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([*pip, "-r", str(FASTAPI / "requirements.lock")], check=True)
        _mark(FASTAPI)
    if not _fresh(FASTIFY):
        print("installing Fastify and ioredis")
        npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error"]
        subprocess.run(npm, check=True, cwd=FASTIFY)
        _mark(FASTIFY)


def _lock_hash(peer: Path) -> str:
    lock = peer / ("requirements.lock" if peer == FASTAPI else "package-lock.json")
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _stamp(peer: Path) -> Path:
    return INSTALLED / f"{peer.name}.lock.sha256"


def _fresh(peer: Path) -> bool:
    there = PYTHON.exists() if peer == FASTAPI else NODE_MODULES.is_dir()
    return there and _stamp(peer).exists() and _stamp(peer).read_text() == _lock_hash(peer)


def _mark(peer: Path) -> None:
    _stamp(peer).write_text(_lock_hash(peer))


def main() -> int:
    try:
        install()
    except Missing as exc:
        print(f"bench-peers: {exc}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as exc:
        print(f"bench-peers: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
