"""The build step that pyproject.toml cannot express: a wheel carries `configs/`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `configs/` to `ahpa/configs/` of a wheel; an editable install reads it in place."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "ahpa" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", target, ignore=ignored)


setup(cmdclass={"build_py": BuildWithConfigs})
