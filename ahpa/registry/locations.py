"""Where the shipped configs and commands are: in a checkout, or in an installed package."""

from pathlib import Path

from .errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parents[1]
PREFIX = "ahpa::"


def config_root() -> Path:
    """Return the folder of the shipped configs."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def command_line(command: str) -> str:
    """Return how to run a command such as "sample" here: by the checkout's tool, else by `ahpa`."""
    tool = f"tools/{command}.py"
    return f"python {tool}" if (PACKAGE.parent / tool).is_file() else f"ahpa {command}"


def config_path(name: str | Path) -> Path:
    """Return the path of a config; `ahpa::NAME` is a file inside `config_root()`.

    Args:
        name: A path, or `ahpa::` and a path such as `_base_/backbones/sit-b.py`.
    """
    text = str(name)
    return config_root() / text.removeprefix(PREFIX) if text.startswith(PREFIX) else Path(name)


def shipped_names(kind: str) -> list[str]:
    """List the shipped files of a kind, such as "scales", without their suffix."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.json"))


def find_shipped(kind: str, name: str, option: str) -> Path:
    """Find a shipped file by its name.

    Args:
        kind: Folder of such files, "protocols" or "scales".
        name: The name without a suffix.
        option: The option that named it; begins the message.

    Raises:
        UserError: If there is none, with the nearest names.
    """
    known = shipped_names(kind)
    if name not in known:
        raise UserError(
            f"{option}: no {kind[:-1]} is called {name!r}{nearest(name, known)} A file must end in "
            ".json."
        )
    return config_root() / kind / f"{name}.json"


def find_config(name: str) -> Path:
    """Find a config by path, or a shipped one by name.

    Args:
        name: A path, a name such as "ahpa_sit-b" or "configs/ahpa_sit-b.py", or `ahpa::NAME`.

    Raises:
        UserError: If there is none, with the nearest names.
    """
    path = config_path(name).expanduser()
    if path.exists():
        return path
    root = config_root()
    shipped = root / f"{path.stem}.py"
    bare = path.parent in (Path("."), Path("configs"))
    if bare and path.suffix in ("", ".py") and shipped.is_file():
        return shipped
    names = [other.stem for other in root.glob("*.py")]
    raise UserError(f"there is no config {name}{nearest(path.stem, names)}")
