"""Virtual environments as a plugin's author has one: new, with camkit and its libraries, without any network."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from commandline import Result

LIBRARIES = sysconfig.get_paths()["purelib"]

# nothing answers at that address: whatever asks for it fails
NOWHERE = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "PIP_INDEX_URL"), "http://127.0.0.1:9")
# pip reads its options from these too; of "no build isolation" it wants to be told the opposite
OFFLINE = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}


@dataclass(frozen=True)
class Environment:
    """A virtual environment; `folder` holds ``bin``, with the command ``camkit`` in it."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> "Environment":
        """A new one that sees what the tests run with: camkit, its libraries, pip and pytest."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        (site,) = folder.glob("lib/python*/site-packages")
        # addsitedir, unlike a path in a .pth file, also reads the .pth files there, such as camkit's own
        (site / "lent.pth").write_text(f"import site; site.addsitedir({LIBRARIES!r})\n")
        script = folder / "bin" / "camkit"
        script.write_text(f"#!{folder / 'bin' / 'python'}\nfrom camkit.cli import main\nmain()\n")
        script.chmod(0o755)
        return cls(folder)

    @property
    def site(self) -> Path:
        """Where its packages lie."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        return site

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a shell in which it is active."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CAMKIT_PLUGINS")}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # one thread, as the tests themselves: several processes share the machine
        own = {"PATH": path, "VIRTUAL_ENV": str(self.folder), "OMP_NUM_THREADS": "1"}
        # sources that a test edits twice in a second would be taken for the compiled ones
        return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1", **NOWHERE, **OFFLINE}

    def run(self, *arguments: object, cwd: Path) -> Result:
        """A program as a shell in the environment finds it, such as ``camkit`` or ``python``."""
        program, *others = map(str, arguments)
        done = subprocess.run(
            [shutil.which(program, path=self.variables["PATH"]) or program, *others],
            cwd=cwd,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=180,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def succeed(self, *arguments: object, cwd: Path) -> str:
        """What a program prints; it must succeed."""
        result = self.run(*arguments, cwd=cwd)
        assert result.code == 0, result.out + result.err
        return result.out

    def install(self, tree: Path, *, editable: bool = False) -> None:
        """A distribution from its source tree, as an author installs it."""
        how = ("--editable", tree) if editable else (tree,)
        self.succeed("python", "-m", "pip", "install", "--quiet", *how, cwd=tree)

    def found(self, program: str, *, cwd: Path, **values: object) -> Any:
        """What a Python program leaves in `found`; `values` are its variables."""
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        source = f"import json, torch\ntorch.set_num_threads(1)\n{given}{dedent(program)}\nprint(json.dumps(found))"
        return json.loads(self.succeed("python", "-c", source, cwd=cwd).splitlines()[-1])
